"""What a picture looks like in 256 bits, and which of two large sets look the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
NEAR_BITS = 12
"""Two 256-bit hashes this close count as one picture. Of 1,500 photographs saved anew (JPEG quality
60, or scaled by 0.7) 99 % moved by at most 11 bits; the nearest two distinct ones differ by 31."""

FLAT_BITS = 16
"""A hash with fewer bits set (or unset) is of a near-uniform picture and says nothing."""

CHUNK = 1 << 18  # candidate pairs compared at a time: some 20 MB

Hashes = NDArray[np.uint64]


def both_hashes(image: Image.Image) -> tuple[Hashes, Hashes]:
    """Return the difference hashes of a picture and of its mirror image.

    dHash (Krawetz 2013) on a 17 x 16 grey thumbnail, is each pixel darker than its right neighbour?
    It survives new encoding and scaling.

    Returns:
        Two uint64 [4], 256 bits each.
    """
    grey = _thumbnail(image)
    return _hash(grey), _hash(grey[:, ::-1])


def _thumbnail(image: Image.Image) -> NDArray[np.int16]:
    small = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.int16)


def _hash(grey: NDArray[np.int16]) -> Hashes:
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)


def near_pairs(
    one: Hashes, other: Hashes, most: int = NEAR_BITS, chunk: int = CHUNK
) -> Iterator[tuple[int, int, int]]:
    """Yield (row of one, row of other, differing bits) of hashes at most ``most`` bits apart.

    Exact, without comparing all with all: of ``most`` + 1 bands of bits at least one is untouched
    in such a pair (multi-index hashing, Norouzi, Punjani and Fleet 2012), so only pairs that
    agree in a band are compared. A band takes every (``most`` + 1)-th bit, which spreads it over
    the picture: of photographs of faces 4 in 100,000 pairs agree in one. Near-uniform pictures on
    either side are left out.

    Args:
        one: uint64 [n, 4].
        other: uint64 [m, 4].
        most: largest Hamming distance, at least 3.
        chunk: candidates compared at a time; memory is some 80 bytes for each, and 8 x
            (``most`` + 1) for each hash.
    """
    rows, columns = _telling(one), _telling(other)
    one, other = one[rows], other[columns]
    left, right = _bands(one, most + 1), _bands(other, most + 1)
    for band in range(most + 1):
        order = np.argsort(right[band], kind="stable")
        keys = right[band][order]
        low = np.searchsorted(keys, left[band], "left")
        high = np.searchsorted(keys, left[band], "right")
        for a, places in _runs(low, high, chunk):
            b = order[places]
            distance = np.bitwise_count(one[a] ^ other[b]).sum(axis=1, dtype=np.int32)
            near = distance <= most
            a, b, distance = a[near], b[near], distance[near]
            first = ~(left[:band, a] == right[:band, b]).any(axis=0)  # not met in a band before
            found = zip(rows[a[first]], columns[b[first]], distance[first], strict=True)
            yield from ((int(row), int(column), int(bits)) for row, column, bits in found)


def _telling(hashes: Hashes) -> NDArray[np.intp]:
    ones = np.bitwise_count(hashes).sum(axis=1, dtype=np.int32)
    return np.flatnonzero((ones >= FLAT_BITS) & (ones <= HASH_BITS - FLAT_BITS))


def _bands(hashes: Hashes, count: int, block: int = 8192) -> NDArray[np.uint64]:
    """Return uint64 [count, n]: of every hash each ``count``-th bit, from the first, second, ..."""
    bands = np.zeros((count, len(hashes)), dtype=np.uint64)
    for start in range(0, len(hashes), block):
        part = np.ascontiguousarray(hashes[start : start + block]).view(np.uint8)
        bits = np.unpackbits(part, axis=1)
        for band in range(count):
            packed = np.packbits(bits[:, band::count], axis=1)
            padded = np.zeros((len(part), 8), dtype=np.uint8)
            padded[:, : packed.shape[1]] = packed
            bands[band, start : start + block] = padded.view(np.uint64)[:, 0]
    return bands


def _runs(
    low: NDArray[np.intp], high: NDArray[np.intp], chunk: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield (rows, places) of all places from low to high of each row, ``chunk`` at a time."""
    ends = np.cumsum(high - low, dtype=np.intp)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, chunk):
        at = np.arange(start, min(start + chunk, total), dtype=np.intp)
        rows = np.searchsorted(ends, at, "right")
        yield rows, high[rows] - ends[rows] + at
