"""The buffer: episodes in, batch top-k out, with snapshots. In memory, saved as the episodes it was fed.

    buffer.add(episodes)
    snapshot = buffer.snapshot()                       # what was there at this moment; later adds stay invisible to it
    hits = snapshot.topk([Query(state, action, exclude_episode=e, exclude_task=t)], k=2)

Rollouts of one iteration read one snapshot, so retrieval does not depend on which episode finishes first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dreamgym.core.files import read_episodes, write_episodes
from dreamgym.core.state import State
from dreamgym.core.types import Episode, Source, Transition
from dreamgym.replay.encoder import HashingEncoder, Vectors

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Query:
    """One (state, action), and what must not be found for it."""

    state: State
    action: str
    exclude_episode: str | None = None
    exclude_task: str | None = None
    source: Source | None = None
    """Only transitions of this source; None = all."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved transition with its provenance and cosine."""

    transition: Transition
    episode: str
    task: str
    source: Source
    score: float


class Retrieval(Protocol):
    """Batch top-k over a fixed set of transitions: the part of a replay buffer that predictions need."""

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]: ...

    def __len__(self) -> int: ...


class Replay(Protocol):
    """A store of episodes that can be searched at a fixed moment."""

    def add(self, episodes: Iterable[Episode]) -> int: ...

    def snapshot(self) -> Retrieval: ...

    def __len__(self) -> int: ...


class ReplayBuffer:
    """All transitions of valid episodes, in the order they were added."""

    def __init__(self, encoder: HashingEncoder | None = None) -> None:
        self.encoder = encoder or HashingEncoder()
        self._vectors: Vectors = np.zeros((1024, self.encoder.dimension), dtype=np.float32)
        self._episode_of = np.zeros(1024, dtype=np.int32)
        self._task_of = np.zeros(1024, dtype=np.int32)
        self._real = np.zeros(1024, dtype=bool)
        self._transitions: list[Transition] = []
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        self._episodes: list[Episode] = []

    def __len__(self) -> int:
        return len(self._transitions)

    def add(self, episodes: Iterable[Episode]) -> int:
        """Append the transitions of valid episodes; returns how many. Invalid steps and episodes are left out."""
        before = len(self)
        for episode in episodes:
            if not episode.valid:
                continue
            steps = [t for t in episode.steps if t.reward is not None]
            if not steps:
                continue
            self._episodes.append(episode)
            start = len(self)
            self._grow(start + len(steps))
            end = start + len(steps)
            self._vectors[start:end] = self.encoder.encode([(t.state, t.action) for t in steps])
            self._episode_of[start:end] = self._code(f"e:{episode.id}")
            self._task_of[start:end] = self._code(f"t:{episode.task.id}")
            self._real[start:end] = episode.source == "real"
            self._transitions += steps
        return len(self) - before

    def snapshot(self) -> "Snapshot":
        return Snapshot(self, len(self))

    def save(self, path: Path) -> None:
        write_episodes(path, self._episodes)

    @classmethod
    def load(cls, path: Path, encoder: HashingEncoder | None = None) -> "ReplayBuffer":
        buffer = cls(encoder)
        buffer.add(read_episodes(path))
        return buffer

    def _code(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = len(self._names)
            self._names.append(name)
        return self._ids[name]

    def _grow(self, size: int) -> None:
        if size <= len(self._vectors):
            return
        capacity = max(size, 2 * len(self._vectors))
        for name in ("_vectors", "_episode_of", "_task_of", "_real"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), dtype=old.dtype)
            new[: len(self)] = old[: len(self)]
            setattr(self, name, new)


@dataclass(frozen=True)
class Snapshot:
    """The first ``size`` transitions of a buffer."""

    buffer: ReplayBuffer
    size: int

    def __len__(self) -> int:
        return self.size

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """For each query the k nearest by cosine, best first, ties by age; fewer where fewer may be shown."""
        b = self.buffer
        found: list[list[Hit]] = []
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            vectors = b.encoder.encode([(q.state, q.action) for q in block])
            scores = vectors @ b._vectors[: self.size].T
            for q, row in zip(block, scores, strict=True):
                self._mask(row, q)
                found.append(self._best(row, k))
        return found

    def _mask(self, row: Vectors, q: Query) -> None:
        b = self.buffer
        if q.exclude_episode is not None and (code := b._ids.get(f"e:{q.exclude_episode}")) is not None:
            row[b._episode_of[: self.size] == code] = -2.0
        if q.exclude_task is not None and (code := b._ids.get(f"t:{q.exclude_task}")) is not None:
            row[b._task_of[: self.size] == code] = -2.0
        if q.source is not None:
            row[b._real[: self.size] != (q.source == "real")] = -2.0

    def _best(self, row: Vectors, k: int) -> list[Hit]:
        b = self.buffer
        k = min(k, self.size)
        if k == 0:
            return []
        edge = row.max() if k == 1 else np.partition(row, self.size - k)[self.size - k]
        candidates = np.flatnonzero(row >= edge)
        order = candidates[np.lexsort((candidates, -row[candidates]))][:k]
        return [
            Hit(
                b._transitions[i],
                b._names[b._episode_of[i]][2:],
                b._names[b._task_of[i]][2:],
                "real" if b._real[i] else "dream",
                float(row[i]),
            )
            for i in order
            if row[i] > -2.0
        ]
