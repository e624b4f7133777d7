"""φ(s, a): a hashing encoder of state-action pairs, without a download (arXiv 2511.03773 leaves the encoder open).

Words are hashed to signed dimensions. The action weighs most, then the state lines that name one of its words, then the
rest of the state, so nearest neighbours do the same kind of thing to a similar thing in a similar situation.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dreamgym.core.seeding import key_of
from dreamgym.core.state import State

Vectors = NDArray[np.float32]


@functools.lru_cache(maxsize=200_000)
def _slot(word: str, dimension: int) -> tuple[int, float]:
    h = key_of("hash", word)
    return h % dimension, 1.0 if (h >> 40) & 1 else -1.0


class HashingEncoder:
    """Encodes (state, action) pairs to unit vectors [n, dimension]."""

    revision = "1"
    remembers = False

    def __init__(self, dimension: int = 128) -> None:
        self.dimension = dimension
        self.name = f"hashing-{dimension}"

    def encode(self, pairs: Sequence[tuple[State, str]]) -> Vectors:
        out = np.zeros((len(pairs), self.dimension), dtype=np.float32)
        for vector, (state, action) in zip(out, pairs, strict=True):
            words = action.split()
            for position, word in enumerate(words):
                self._add(vector, f"a:{word}", 2.0)
                self._add(vector, f"{position}:{word}", 1.0)
            named = set(words)
            for text in state:
                parts = text.replace("[", "").replace("]", "").replace(":", "").split()
                near = not named.isdisjoint(parts)
                for word in parts:
                    self._add(vector, f"n:{word}" if near else f"s:{word}", 1.0 if near else 0.15)
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        out /= np.maximum(norms, 1e-6)
        return out

    def _add(self, vector: Vectors, word: str, weight: float) -> None:
        slot, sign = _slot(word, self.dimension)
        vector[slot] += sign * weight
