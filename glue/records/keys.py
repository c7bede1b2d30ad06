"""Bearer keys. A secret is shown once, when it is made; only its sha256 is stored."""

import hashlib
import re
import secrets
import string
import zlib
from datetime import timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.errors import NotFoundError
from glue.records.ids import new_id
from glue.records.tables import ApiKey

PREFIX = "mgl_"
_BASE62 = string.digits + string.ascii_letters
_RANDOM_LENGTH, _CHECKSUM_LENGTH, _VISIBLE_LENGTH = 37, 6, 8
_FORM = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM_LENGTH + _CHECKSUM_LENGTH}}}")
_USE_NOTED_EVERY = timedelta(minutes=1)


def create_key(session: Session, owner: str, name: str) -> tuple[ApiKey, str]:
    """A new key and its secret: `mgl_`, 37 random characters, and 6 of checksum so that scanners know it."""
    body = "".join(secrets.choice(_BASE62) for _ in range(_RANDOM_LENGTH))
    secret = PREFIX + body + _checksum(body)
    visible = secret[:_VISIBLE_LENGTH]
    key = ApiKey(id=new_id("key"), owner=owner, name=name, hash=_hash(secret), prefix=visible)
    session.add(key)
    session.flush()
    return key, secret


def find_owner(session: Session, secret: str) -> str | None:
    """The owner of a valid key, or none. Its use is noted at most once a minute."""
    if not _well_formed(secret):
        return None
    key = session.execute(
        select(ApiKey.id, ApiKey.owner).where(ApiKey.hash == _hash(secret), ApiKey.revoked_at.is_(None))
    ).first()
    if key is None:
        return None
    unnoted = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < CLOCK - _USE_NOTED_EVERY)
    session.execute(update(ApiKey).where(ApiKey.id == key.id, unnoted).values(last_used_at=CLOCK))
    owner: str = key.owner
    return owner


def revoke_key(session: Session, owner: str, key_id: str) -> None:
    """Make the key useless. Revoking it again changes nothing.

    Raises:
        NotFoundError: the owner has no such key.
    """
    mine = (ApiKey.owner == owner, ApiKey.id == key_id)
    if session.scalar(select(ApiKey.id).where(*mine)) is None:
        raise NotFoundError(f"there is no key {key_id}")
    session.execute(update(ApiKey).where(*mine, ApiKey.revoked_at.is_(None)).values(revoked_at=CLOCK))


def _well_formed(secret: str) -> bool:
    body = secret[len(PREFIX) : -_CHECKSUM_LENGTH]
    return _FORM.fullmatch(secret) is not None and _checksum(body) == secret[-_CHECKSUM_LENGTH:]


def _checksum(body: str) -> str:
    """The CRC-32 of the random part as six base62 digits."""
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
