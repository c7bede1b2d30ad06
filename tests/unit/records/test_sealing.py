"""Sealed secrets: opened by their owner's name and the master key, by nothing else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.records.sealing import KEY_BYTES, SealError, Vault

KEY, OTHER = b"k" * KEY_BYTES, b"o" * KEY_BYTES


TEXT = st.text(st.characters(codec="utf-8"))


@given(TEXT, TEXT)
def test_what_was_sealed_opens(owner: str, secret: str) -> None:
    vault = Vault([KEY])
    assert vault.open(owner, vault.seal(owner, secret)) == secret


def test_nobody_else_opens_it() -> None:
    sealed = Vault([KEY]).seal("ann", "hf_secret")
    assert b"hf_secret" not in sealed
    for vault, owner in ((Vault([KEY]), "bob"), (Vault([OTHER]), "ann")):
        with pytest.raises(SealError):
            vault.open(owner, sealed)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    sealed = bytearray(Vault([KEY]).seal("ann", "hf_secret"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(SealError):
        Vault([KEY]).open("ann", bytes(sealed))


def test_the_same_secret_is_sealed_differently_every_time() -> None:
    assert Vault([KEY]).seal("ann", "x") != Vault([KEY]).seal("ann", "x")


def test_a_new_master_key_opens_what_the_old_one_sealed() -> None:
    sealed = Vault([OTHER]).seal("ann", "hf_secret")
    both = Vault.from_text(",".join(base64.b64encode(key).decode() for key in (KEY, OTHER)))
    assert both.open("ann", sealed) == "hf_secret"
    assert Vault([KEY]).open("ann", both.seal("ann", "new")) == "new"


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"short").decode(), "ä"])
def test_what_is_no_master_key_is_told_without_showing_it(text: str) -> None:
    with pytest.raises(SealError) as told:
        Vault.from_text(text)
    assert not text or text not in str(told.value)
