"""A replay buffer over a durable store: real transitions first, dreamed ones added, retrieved as of any iteration.

    buffer = DurableReplay(EpisodeStore(Path("runs/mine/buffer")))
    buffer.add(episodes)                          # durable when it returns; what is in already is not added again
    hits = buffer.snapshot().topk([Query(state, action, exclude_episode=e, exclude_task=t)], k=2)
    earlier = buffer.snapshot(generation=3)       # what rollouts of iteration 3 could find

Real episodes are there from generation 0 on, those dreamed in iteration n from n + 1 on: rollouts of one iteration read one snapshot.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreamgym.core.errors import DataError, PanelLeakError
from dreamgym.core.types import Episode
from dreamgym.replay.approximate import ApproximateIndex
from dreamgym.replay.buffer import Hit, Query
from dreamgym.replay.columns import NEVER
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import Encoder, identity_of
from dreamgym.replay.search import Hidden, exact
from dreamgym.replay.store import EpisodeStore, Vectors


class DurableReplay:
    """Episodes of ``store``, encoded by ``encoder`` (default: hashing). Satisfies ``Replay``."""

    def __init__(self, store: EpisodeStore, encoder: Encoder | None = None) -> None:
        self.store, self.encoder = store, encoder or HashingEncoder()
        identity = identity_of(self.encoder)
        known = next((n for n, i in store.encoders().items() if i == identity), None)
        if known is None and (store.mode == "ro" or len(store)):
            held = ", ".join(i.name for i in store.encoders().values()) or "none"
            raise DataError(f"{store.root}: holds no vectors of the encoder {identity.name} (but of: {held}); open it with one of these")
        if known is not None and known != store.serving():
            raise DataError(f"{store.root}: the encoder {identity.name} does not serve; finish its backfill, or use the one that does")
        self.number = store.add_encoder(identity, serving=True) if known is None else known
        self._index: tuple[Path, ApproximateIndex] | None = None
        """And the folder whose numbers it knows: compaction gives others."""

    def __len__(self) -> int:
        return len(self.store)

    def add(self, episodes: Iterable[Episode]) -> int:
        """Append valid episodes that are not in yet, one commit per generation; returns how many steps came in.

        Raises ``PanelLeakError`` on an episode of an evaluation panel; then nothing of this call was added.
        """
        before, new = len(self), dict[int, dict[str, Episode]]()
        for e in episodes:
            if e.task.panel in ("probe", "test", "unseen"):
                raise PanelLeakError(f"episode {e.id} belongs to the panel {e.task.panel}: it may be evaluated on, never retrieved")
            if e.valid and e.steps and self.store.number_of(f"e:{e.id}") is None:
                new.setdefault(e.policy_version + 1 if e.source == "dream" else 0, {})[e.id] = e
        for generation, group in sorted(new.items()):
            name = hashlib.blake2b("\n".join(group).encode(), digest_size=16).hexdigest()
            vectors = self.encoder.encode([(t.state, t.action) for e in group.values() for t in e.steps])
            self.store.append(list(group.values()), {self.number: vectors}, name, generation)
        return len(self) - before

    def approximate(self, recall: float = 0.98) -> float:
        """From now on search what is in by an approximate index (the extra [faiss]); returns its measured recall.

        What comes later is searched exactly, all after a compaction, until this is called again. It pays from some hundred
        thousand steps on.
        """
        index = ApproximateIndex.build(self.store.matrix(self.number), recall)
        self._index = self.store.folder, index
        return index.recall

    def index(self) -> ApproximateIndex | None:
        """The approximate index, where there is one of the present numbers."""
        return self._index[1] if self._index and self._index[0] == self.store.folder else None

    def snapshot(self, generation: int | None = None) -> "StoreSnapshot":
        """What is there now, or what was there for the rollouts of an iteration."""
        return StoreSnapshot(self, len(self), generation)


@dataclass(frozen=True)
class StoreSnapshot:
    """The first ``size`` steps of a buffer; with ``generation`` those of them that were visible then. Satisfies ``Retrieval``."""

    buffer: DurableReplay
    size: int
    generation: int | None = None

    def __len__(self) -> int:
        return self.size

    def visible(self) -> NDArray[np.bool_]:
        columns = self.buffer.store.columns
        gone, came = columns["evicted"][: self.size], columns["generation"][: self.size]
        return gone == NEVER if self.generation is None else (came <= self.generation) & (gone > self.generation)

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """For each query the k nearest by cosine, best first, ties by age; fewer where fewer may be shown."""
        vectors = self.buffer.encoder.encode([(q.state, q.action) for q in queries])
        ids, scores = self.search(self.buffer.number, vectors, queries, k)
        return [
            [self.hit(step, score) for step, score in zip(row, values, strict=True) if step >= 0]
            for row, values in zip(ids.tolist(), scores.tolist(), strict=True)
        ]

    def search(
        self, encoder: int, vectors: Vectors, queries: Sequence[Query], k: int, part: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Vectors]:
        """Numbers and scores [queries, k] among the vectors of ``encoder``, in ``part`` [steps] of what may be found."""
        c, matrix = self.buffer.store.columns, self.buffer.store.matrix(encoder)[: self.size]
        shown = self.visible() if part is None else self.visible() & part
        if encoder != self.buffer.store.serving():  # only the serving one is whole
            shown = shown & self.buffer.store.filled(encoder)[: self.size]
        ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        index = self.buffer.index() if encoder == self.buffer.number and part is None else None
        find = index.search if index and index.size <= self.size else exact
        for source in {q.source for q in queries}:
            mine = [i for i, q in enumerate(queries) if q.source == source]
            visible = shown if source is None else shown & (c["real"][: self.size] == (source == "real"))
            hidden = [self.hidden(queries[i]) for i in mine]
            ids[mine], scores[mine] = find(matrix, vectors[mine], k, None if visible.all() else visible, hidden, c["task"][: self.size])
        return ids, scores

    def hidden(self, q: Query) -> Hidden:
        """What ``q`` excludes, as numbers."""
        store = self.buffer.store
        episode = store.number_of(f"e:{q.exclude_episode}") if q.exclude_episode is not None else None
        task = store.number_of(f"t:{q.exclude_task}") if q.exclude_task is not None else None
        return Hidden(None if episode is None else store.span_of(episode), task)

    def hit(self, step: int, score: float) -> Hit:
        """A step with its provenance."""
        store, c = self.buffer.store, self.buffer.store.columns
        names = [store.names[c[field][step]][2:] for field in ("episode", "task")]
        return Hit(store.transition(step), names[0], names[1], "real" if c["real"][step] else "dream", score)
