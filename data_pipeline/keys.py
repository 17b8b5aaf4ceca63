"""Sets of 64-bit keys in 8 bytes each, for as many faces as there are."""

from __future__ import annotations

import numpy as np


class Keys:
    """A growing set of keys as sorted runs, merged like the digits of a binary counter.

    A Python set takes some 90 bytes a key. Adding n keys in batches costs O(n log n) in all.
    """

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Return which of ``keys`` (uint64) are in the set, as booleans."""
        found = np.zeros(len(keys), bool)
        for run in self.runs:
            places = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            found |= run[places] == keys
        return found

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Add keys and return which of them were new: False from the second time on."""
        new = np.zeros(len(keys), bool)
        new[np.unique(keys, return_index=True)[1]] = True
        new &= ~self.has(keys)
        if new.any():
            self.runs.append(np.sort(keys[new]))
        while len(self.runs) > 1 and len(self.runs[-2]) <= len(self.runs[-1]):
            one, other = self.runs.pop(), self.runs.pop()
            self.runs.append(np.sort(np.concatenate([other, one]), kind="stable"))
        return new
