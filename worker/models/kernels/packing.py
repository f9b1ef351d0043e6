"""Bit layouts that several types share. Levels are integers, 256 to a block unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from worker.models.kernels.lanes import Array, Index, Int
from worker.models.kernels.machine import Block, Machine


def word(parts: Sequence[Int]) -> Int:
    """Four bytes as one little-endian word."""
    return parts[0] | (parts[1] << 8) | (parts[2] << 16) | (parts[3] << 24)


def put_nibbles(m: Machine, block: Block, offset: int, levels: Array[Int]) -> None:
    """Low four bits: each run of 32 shares its bytes with the next."""

    def put_pair(j: Index) -> None:
        low, high = levels.part(j * 64), levels.part(j * 64 + 32)

        def put_word(k: Index) -> None:
            parts = [(low[k * 4 + i] & 15) | ((high[k * 4 + i] & 15) << 4) for i in range(4)]
            block.out.put(j * 32 + k * 4 + offset, word(parts), 4)

        m.fold(8, put_word)

    m.fold(4, put_pair)


def put_block_nibbles(m: Machine, block: Block, offset: Index, levels: Array[Int]) -> None:
    """Low four bits of 32 levels in 16 bytes: the second half shares its bytes with the first."""

    def put_word(k: Index) -> None:
        parts = [(levels[k * 4 + i] & 15) | ((levels[k * 4 + i + 16] & 15) << 4) for i in range(4)]
        block.out.put(k * 4 + offset, word(parts), 4)

    m.fold(4, put_word)


def put_bit_planes(m: Machine, block: Block, offset: int, levels: Array[Int], bit: int) -> None:
    """One bit of every level: byte ``i`` holds those of elements ``i``, ``i + 32``, ... ``i + 224``."""

    def put_word(k: Index) -> None:
        parts = []
        for i in range(4):
            bits = [((levels[k * 4 + i + 32 * j] >> bit) & 1) << j for j in range(8)]
            parts.append(bits[0] | bits[1] | bits[2] | bits[3] | bits[4] | bits[5] | bits[6] | bits[7])
        block.out.put(k * 4 + offset, word(parts), 4)

    m.fold(8, put_word)


def put_quarters(m: Machine, block: Block, offset: int, levels: Array[Int]) -> None:
    """Low two bits: in each half, byte ``i`` holds those of elements ``i``, ``i + 32``, ``i + 64`` and ``i + 96``."""

    def put_half(j: Index) -> None:
        part = levels.part(j * 128)

        def put_word(k: Index) -> None:
            parts = []
            for i in range(4):
                a, b, c, d = ((part[k * 4 + i + 32 * run] & 3) << (2 * run) for run in range(4))
                parts.append(a | b | c | d)
            block.out.put(j * 32 + k * 4 + offset, word(parts), 4)

        m.fold(8, put_word)

    m.fold(2, put_half)


def put_six_bit(block: Block, offset: int, scales: Sequence[Int], minima: Sequence[Int]) -> list[Int]:
    """Eight scales and minima of six bits in twelve bytes; the upper bits of the last four go on top of the first.

    Returns the bytes as they are stored.
    """
    stored = [(scales[j] | ((scales[j + 4] >> 4) << 6)) & 255 for j in range(4)]
    stored += [(minima[j] | ((minima[j + 4] >> 4) << 6)) & 255 for j in range(4)]
    stored += [(scales[j + 4] & 15) | ((minima[j + 4] & 15) << 4) for j in range(4)]
    for j, byte in enumerate(stored):
        block.out.put(offset + j, byte, 1)
    return stored


def six_bit(stored: Sequence[Int], j: int) -> tuple[Int, Int]:
    """Scale and minimum of sub-block ``j``, as a reader takes them from the twelve bytes."""
    if j < 4:
        return stored[j] & 63, stored[j + 4] & 63
    low = stored[j + 4]
    return (low & 15) | ((stored[j - 4] >> 6) << 4), (low >> 4) | ((stored[j] >> 6) << 4)
