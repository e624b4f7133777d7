"""What filters need to know of each step, as arrays that grow: one entry per step, names as numbers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
OUTCOMES = ("go", "won", "lost")
NEVER = int(np.iinfo(np.int32).max)
"""The generation in which what was never evicted is evicted."""
FIELDS = ("episode", "task", "env", "real", "outcome", "version", "generation", "evicted")


class Columns:
    """``columns["task"]`` is an array [steps]; appending is amortised."""

    def __init__(self) -> None:
        self._size = 0
        self._arrays: dict[str, Ints] = {name: np.zeros(1024, np.int32) for name in FIELDS}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> Ints:
        return self._arrays[name][: self._size]

    def extend(self, values: Mapping[str, Ints]) -> None:
        """Append equally long arrays, one per field."""
        end = self._size + len(values["episode"])
        if end > len(self._arrays["episode"]):
            capacity = max(end, 2 * len(self._arrays["episode"]))
            for name, old in self._arrays.items():
                self._arrays[name] = np.zeros(capacity, np.int32)
                self._arrays[name][: self._size] = old[: self._size]
        for name in FIELDS:
            self._arrays[name][self._size : end] = values[name]
        self._size = end
