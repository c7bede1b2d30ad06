"""Envelope encryption of secrets that the database keeps: a key for each secret, itself sealed by the master key.

Knows no table. AES-256 in Galois/counter mode (NIST SP 800-38D); the owner is bound in, so that a sealed
secret that was copied into another owner's row does not open.
"""

import base64
import hashlib
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NAME_BYTES, _NONCE_BYTES, _TAG_BYTES = 8, 12, 16
_WRAPPED_BYTES = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES
_VERSION = b"\x01"


class SealError(Exception):
    """A secret cannot be opened, or a master key is not one. Never holds either."""


class Vault:
    """Seals with the first of its master keys and opens with any: an older one stays until all is sealed anew."""

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        if not master_keys or any(len(key) != KEY_BYTES for key in master_keys):
            raise SealError(f"a master key has {KEY_BYTES} bytes")
        self._first = _name(master_keys[0])
        self._keys = {_name(key): AESGCM(key) for key in master_keys}

    @classmethod
    def from_text(cls, text: str) -> "Vault":
        """From base64 keys, separated by commas.

        Raises:
            SealError: one of them is not 32 bytes in base64.
        """
        try:
            return cls([base64.b64decode(part.strip(), validate=True) for part in text.split(",")])
        except ValueError:
            raise SealError("a master key is not base64") from None

    def seal(self, owner: str, secret: str) -> bytes:
        """The secret under a fresh key, and that key under the master key."""
        key = AESGCM.generate_key(8 * KEY_BYTES)
        wrapped = _encrypt(self._keys[self._first], key, owner)
        return _VERSION + self._first + wrapped + _encrypt(AESGCM(key), secret.encode(), owner)

    def open(self, owner: str, sealed: bytes) -> str:
        """The inverse of `seal`.

        Raises:
            SealError: it was sealed for somebody else, under a key that is not here, or was changed.
        """
        name, rest = sealed[1 : 1 + _NAME_BYTES], sealed[1 + _NAME_BYTES :]
        if sealed[:1] != _VERSION or name not in self._keys:
            raise SealError("the secret was sealed with another master key")
        key = _decrypt(self._keys[name], rest[:_WRAPPED_BYTES], owner)
        return _decrypt(AESGCM(key), rest[_WRAPPED_BYTES:], owner).decode()


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"name of a master key" + key).digest()[:_NAME_BYTES]


def _encrypt(cipher: AESGCM, content: bytes, owner: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, content, owner.encode())


def _decrypt(cipher: AESGCM, content: bytes, owner: str) -> bytes:
    try:
        return cipher.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], owner.encode())
    except (InvalidTag, ValueError):
        raise SealError("the secret was changed, or belongs to another owner") from None
