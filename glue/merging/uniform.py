"""Random numbers that depend on what they are for and on nothing else: no state, no order, no device.

A number is a function of (seed, model, tensor, position): the first three are digested by sha256 into keys, the
position is mixed with them by the integer hash `lowbias32` (C. Wellons, "Prospecting for Hash Functions"). Integer
arithmetic is the same on every machine.

A number has 24 binary digits. For comparisons with one probability, a word of the hash gives one digit of 32
neighbours, and digits are looked at one by one, as many as the probability has. For comparisons with probabilities of
their own, a word gives the first eight digits of four neighbours, which settle 255 of 256; the other sixteen are
computed where they are needed. Tensors of more than 2^34 elements repeat.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DIGITS = 24
_LEADING = 256
_REST = 1 << 16
_WORD = 4
_BITS = 32

Words = NDArray[np.uint32]


class Stream:
    """The random numbers in [0, 1) of one tensor of one model, by position in the flattened tensor."""

    def __init__(self, seed: int, model: str, tensor: str) -> None:
        self._name = f"{seed}\0{model}\0{tensor}"
        self._known: dict[str, tuple[np.uint32, np.uint32]] = {}

    def numbers(self, start: int, stop: int) -> NDArray[np.float32]:
        """The numbers from `start` to before `stop`, multiples of 2^-24."""
        whole = self._leading(start, stop).astype(np.int64) * _REST + self._rest(np.arange(start, stop))
        return (whole / (_LEADING * _REST)).astype(np.float32)

    def below(self, probability: float, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether the numbers from `start` to before `stop` lie below a probability from 0 to less than 1.

        These numbers are others than those of `numbers`. The probability is rounded up to 24 binary digits.
        """
        bound = int(np.ceil(probability * 2**DIGITS))
        if not 0 < bound < 2**DIGITS:
            return np.full(stop - start, bound > 0)
        first, last = start // _BITS, -(-stop // _BITS)
        found: Words | None = None
        # From the last digit that is 1 to the first: a number is below if the first digit that differs is 0.
        for place in range(DIGITS - (bound & -bound).bit_length(), -1, -1):
            zeros = ~_mixed(_words(first, last), self._keys(str(place)))
            if found is None:
                found = zeros
            elif bound >> (DIGITS - 1 - place) & 1:
                found |= zeros
            else:
                found &= zeros
        assert found is not None
        skipped = start - first * _BITS
        bits = np.unpackbits(found.view(np.uint8), count=skipped + stop - start, bitorder="little")
        return bits[skipped:].view(np.bool_)

    def below_each(self, probabilities: NDArray[np.float32], start: int) -> NDArray[np.bool_]:
        """Whether the numbers from `start` on lie below their own probabilities, a flat array."""
        leading = self._leading(start, start + len(probabilities))
        left = probabilities * np.float32(_LEADING)
        left -= leading
        found = left >= 1
        open_ = np.flatnonzero((left > 0) & ~found)
        found[open_] = self._rest(open_ + start) < left[open_] * _REST
        return found

    def _leading(self, start: int, stop: int) -> NDArray[np.uint8]:
        first, last = start // _WORD, -(-stop // _WORD)
        skipped = start - first * _WORD
        return _mixed(_words(first, last), self._keys("leading")).view(np.uint8)[skipped : skipped + stop - start]

    def _rest(self, positions: NDArray[np.int64]) -> Words:
        return _mixed(positions.astype(np.uint32), self._keys("rest")) >> np.uint32(16)

    def _keys(self, use: str) -> tuple[np.uint32, np.uint32]:
        if use not in self._known:
            digest = hashlib.sha256(f"{self._name}\0{use}".encode()).digest()
            self._known[use] = _key(digest, 0), _key(digest, 1)
        return self._known[use]


def _words(first: int, last: int) -> Words:
    return _counter(last - first) + np.uint32(first % 2**32)


def _mixed(state: Words, keys: tuple[np.uint32, np.uint32]) -> Words:
    scratch = np.empty_like(state)
    state ^= keys[0]
    _round(state, scratch, 16, 0x7FEB352D)
    state ^= keys[1]
    _round(state, scratch, 15, 0x846CA68B)
    state ^= np.right_shift(state, np.uint32(16), out=scratch)
    return state


def _round(state: Words, scratch: Words, shift: int, factor: int) -> None:
    state ^= np.right_shift(state, np.uint32(shift), out=scratch)
    state *= np.uint32(factor)


def _key(digest: bytes, place: int) -> np.uint32:
    return np.uint32(int.from_bytes(digest[4 * place : 4 * place + 4], "little"))


@lru_cache(maxsize=64)
def _counter(count: int) -> Words:
    return np.arange(count, dtype=np.uint32)
