"""Random numbers that depend on what they are for and on nothing else: no state, no order, no device.

A number is a function of (seed, model, tensor, position): the first three and the number of the block are
digested by sha256 into two keys, and the position in the block is mixed with them by the integer hash
`lowbias32` (C. Wellons, "Prospecting for Hash Functions"). Integer arithmetic is the same on every device.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from glue.merging.blocks import Block

_BITS = 24


def uniform(seed: int, model: str, tensor: str, block: Block, columns: int) -> Tensor:
    """Numbers in [0, 1) for the elements of a block, `rows x columns`, fp32, multiples of 2^-24."""
    first, second = _keys(seed, model, tensor, block.index)
    rows = block.stop - block.start
    state = _counter(rows * columns) ^ first
    scratch = torch.empty_like(state)
    _mix(state, scratch, 16, 0x7FEB352D)
    state ^= second
    _mix(state, scratch, 15, 0x846CA68B)
    torch.bitwise_right_shift(state, 16, out=scratch)
    state ^= scratch.bitwise_and_(0xFFFF)
    state >>= 32 - _BITS
    state &= (1 << _BITS) - 1
    return state.to(torch.float32).mul_(2.0**-_BITS).view(rows, columns)


def _mix(state: Tensor, scratch: Tensor, shift: int, factor: int) -> None:
    # torch shifts signed integers arithmetically; the mask makes the shift logical.
    torch.bitwise_right_shift(state, shift, out=scratch)
    state ^= scratch.bitwise_and_((1 << (32 - shift)) - 1)
    state *= _signed(factor)


def _keys(seed: int, model: str, tensor: str, block: int) -> tuple[int, int]:
    name = f"{seed}\0{model}\0{tensor}\0{block}".encode()
    digest = hashlib.sha256(name).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:8], "little", signed=True)


@lru_cache(maxsize=64)
def _counter(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
