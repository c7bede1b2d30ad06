"""Random numbers that depend on what they are for and on nothing else: no state, no order, no device.

A number is a function of (seed, model, tensor, position): the first three are digested by sha256 into keys, the
position is mixed with them by the integer hash `lowbias32` (C. Wellons, "Prospecting for Hash Functions"). Integer
arithmetic is the same on every machine.

A number has 24 binary digits. One word of the hash gives the first eight digits of four neighbours, which settle 255
of 256 comparisons; the other sixteen are computed where they are needed. Tensors of more than 2^34 elements repeat.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LEADING = 256
_REST = 1 << 16
_WORD = 4

Words = NDArray[np.uint32]


class Stream:
    """The random numbers in [0, 1) of one tensor of one model, by position in the flattened tensor."""

    def __init__(self, seed: int, model: str, tensor: str) -> None:
        digest = hashlib.sha256(f"{seed}\0{model}\0{tensor}".encode()).digest()
        self._leading_keys = _key(digest, 0), _key(digest, 1)
        self._rest_keys = _key(digest, 2), _key(digest, 3)

    def numbers(self, start: int, stop: int) -> NDArray[np.float32]:
        """The numbers from `start` to before `stop`, multiples of 2^-24."""
        whole = self._leading(start, stop).astype(np.int64) * _REST + self._rest(np.arange(start, stop))
        return (whole / (_LEADING * _REST)).astype(np.float32)

    def below(self, probability: float, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether the numbers from `start` to before `stop` lie below a probability from 0 to less than 1."""
        bound, rest = divmod(int(np.ceil(probability * _LEADING * _REST)), _REST)
        leading = self._leading(start, stop)
        found = np.less(leading, bound) if bound < _LEADING else np.ones(stop - start, dtype=np.bool_)
        if rest:
            open_ = np.flatnonzero(leading == bound)
            found[open_] = self._rest(open_ + start) < rest
        return found

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
        words = _counter(last - first) + np.uint32(first % 2**32)
        skipped = start - first * _WORD
        return _mixed(words, self._leading_keys).view(np.uint8)[skipped : skipped + stop - start]

    def _rest(self, positions: NDArray[np.int64]) -> Words:
        return _mixed(positions.astype(np.uint32), self._rest_keys) >> np.uint32(16)


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
