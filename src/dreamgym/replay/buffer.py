"""The replay buffer: real transitions first, dreamed ones added, retrieved as of any iteration; durable, or for this process only.

    buffer = ReplayBuffer(Path("runs/mine/buffer"))     # without a folder: a temporary one, gone with the object
    buffer.add(episodes)                                # durable when it returns; what is in already is not added again
    hits = buffer.snapshot().topk([Query(state, action, exclude_episode=e, exclude_task=t)], k=2)
    earlier = buffer.snapshot(generation=3)             # what rollouts of iteration 3 could find

Logs are there from generation 0 on, what came of iteration n from n + 1 on: rollouts of one iteration read one snapshot.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreamgym.core.errors import DataError, DreamgymError
from dreamgym.core.types import Episode
from dreamgym.replay.approximate import ApproximateIndex
from dreamgym.replay.columns import NEVER, OUTCOMES
from dreamgym.replay.contract import Hit, Query, found_from, may_enter
from dreamgym.replay.database import Mode
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import Encoder, Pair, identity_of
from dreamgym.replay.search import Hidden, exact
from dreamgym.replay.store import EpisodeStore, Vectors
from dreamgym.replay.upkeep import rewind


class ReplayBuffer:
    """Episodes in a folder (or of a store that is open), encoded by ``encoder`` (default: hashing). Satisfies ``Replay``."""

    def __init__(self, folder: Path | EpisodeStore | None = None, encoder: Encoder | None = None, mode: Mode = "rw") -> None:
        self.store = folder if isinstance(folder, EpisodeStore) else EpisodeStore(folder, mode)
        self.encoder = encoder or HashingEncoder()
        self.frozen = self.store.mode == "ro"
        try:
            self.number = self._number()
        except DataError:
            if not isinstance(folder, EpisodeStore):
                self.store.close()
            raise
        self._ahead: threading.Thread | None = None
        self._index: tuple[str, ApproximateIndex] | None = None
        """And the numbering that it knows."""

    def _number(self) -> int:
        """The store's number of the encoder; a new buffer takes it in."""
        store, identity = self.store, identity_of(self.encoder)
        known = next((n for n, i in store.encoders().items() if i == identity), None)
        if known is None and (store.mode == "ro" or len(store)):
            same = any(i.name == identity.name for i in store.encoders().values())
            held = ", ".join(f"{i.name}{f' of revision {i.revision}' if same else ''}" for i in store.encoders().values()) or "none"
            own = f"{identity.name}{f' of revision {identity.revision}' if same else ''}"
            raise DataError(f"{store.root}: holds no vectors of the encoder {own} (but of: {held}); open it with one of these")
        if known is not None and known != store.serving():
            raise DataError(f"{store.root}: the encoder {identity.name} does not serve; finish its backfill, or use the one that does")
        return store.add_encoder(identity, serving=True) if known is None else known

    def __len__(self) -> int:
        return len(self.store)

    def prepare(self, episodes: Sequence[Episode]) -> None:
        """Encode in the background what is about to come in, while the policy is updated; only encoders that remember texts gain by it."""
        if self.encoder.remembers:
            pairs = [(t.state, t.action) for e in episodes if e.valid for t in e.steps]
            self._ahead = threading.Thread(target=self._encode_ahead, args=(pairs,), daemon=True)
            self._ahead.start()

    def _encode_ahead(self, pairs: Sequence[Pair]) -> None:
        with suppress(DreamgymError):  # ``add`` asks again, and says what is wrong
            self.encoder.encode(pairs)

    def add(self, episodes: Iterable[Episode], generation: int | None = None) -> int:
        """Append valid episodes (no step without a reward) that are not in yet; returns how many steps came in.

        They are found from ``generation`` on; without one, what was dreamed in iteration n from n + 1 on, real ones always. One
        commit per generation. Raises ``PanelLeakError`` on an episode of an evaluation panel; then nothing of this call was added.
        """
        if self.store.mode == "ro":
            raise DataError(f"{self.store.root}: was opened for reading; open it with mode='rw' to add")
        if self.frozen:
            raise DataError(f"{self.store.root}: is frozen for evaluation; episodes of an evaluation may not come into the buffer")
        if self._ahead:
            self._ahead.join()
        before, new = len(self), dict[int, dict[str, Episode]]()
        for e in episodes:
            if may_enter(e) and self.store.number_of(f"e:{e.id}") is None:
                new.setdefault(found_from(e, generation), {})[e.id] = e
        for since, group in sorted(new.items()):
            name = hashlib.blake2b("\n".join(group).encode(), digest_size=16).hexdigest()
            vectors = self.encoder.encode([(t.state, t.action) for e in group.values() for t in e.steps])
            self.store.append(list(group.values()), {self.number: vectors}, name, since)
        return len(self) - before

    def episodes(self) -> Iterator[Episode]:
        """All that are not evicted, in the order of their arrival."""
        return self.store.episodes()

    def evict(self, episodes: Sequence[str], generation: int) -> None:
        """Mark episodes as gone from ``generation`` on; what is not in is ignored."""
        numbers = [self.store.number_of(f"e:{name}") for name in episodes]
        self.store.evict([self.store.place_of(n) for n in numbers if n is not None], generation)

    def freeze(self) -> "Snapshot":
        """Take nothing in any more, for evaluation and audits; what is there now."""
        self.frozen = True
        return self.snapshot()

    def rewind(self, generation: int) -> None:
        """Forget what came in for generations after ``generation``, as if it had never come."""
        rewind(self.store, generation)

    def held(self) -> int:
        """Steps that can be found."""
        return int((self.store.columns["evicted"] == NEVER).sum())

    def metrics(self) -> dict[str, float]:
        """Steps that are in, and the share of real ones among them."""
        c = self.store.columns
        live = c["evicted"] == NEVER
        return {"buffer_steps": float(live.sum()), "buffer_real": float(c["real"][live].mean()) if live.any() else 1.0}

    def approximate(self, recall: float = 0.98) -> float:
        """From now on search what is in by an approximate index (the extra [faiss]); returns its measured recall.

        What comes later is searched exactly, all after a compaction, until this is called again. It pays from some hundred
        thousand steps on.
        """
        index = ApproximateIndex.build(self.store.matrix(self.number), recall)
        self._index = self.store.numbering, index
        return index.recall

    def index(self) -> ApproximateIndex | None:
        """The approximate index, where there is one of the present numbers."""
        return self._index[1] if self._index and self._index[0] == self.store.numbering else None

    def snapshot(self, generation: int | None = None) -> "Snapshot":
        """What is there now, or what was there for the rollouts of an iteration."""
        return Snapshot(self, len(self), generation)

    def close(self) -> None:
        self.store.close()


@dataclass(frozen=True)
class Snapshot:
    """The first ``size`` steps of a buffer; with ``generation`` those of them that were visible then. Satisfies ``Retrieval``."""

    buffer: ReplayBuffer
    size: int
    generation: int | None = None
    numbering: str = field(init=False)
    visible: NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    """Of all its steps [size], those that were in and not evicted."""

    def __post_init__(self) -> None:
        columns = self.buffer.store.columns
        gone, came = columns["evicted"][: self.size], columns["generation"][: self.size]
        seen = gone == NEVER if self.generation is None else (came <= self.generation) & (gone > self.generation)
        object.__setattr__(self, "numbering", self.buffer.store.numbering)
        object.__setattr__(self, "visible", seen)

    def __len__(self) -> int:
        return self.size

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
        """Numbers and scores [queries, k] among the vectors of ``encoder``, in ``part`` [steps] of what may be found.

        Raises ``DataError`` where the buffer was compacted or rewound since: its steps have other numbers now.
        """
        store = self.buffer.store
        if store.numbering != self.numbering:
            raise DataError(f"{store.root}: was compacted or rewound since this snapshot was taken; take a new one")
        matrix, tasks = store.matrix(encoder)[: self.size], store.columns["task"][: self.size]
        shown = self.visible if part is None else self.visible & part
        if encoder != store.serving():  # only the serving one is whole
            shown = shown & store.filled(encoder)[: self.size]
        ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        index = self.buffer.index() if encoder == self.buffer.number and part is None else None
        find = index.search if index and index.size <= self.size else exact
        alike: dict[tuple[object, ...], list[int]] = {}
        for i, q in enumerate(queries):
            alike.setdefault((q.source, q.env, q.outcome, q.min_policy_version), []).append(i)
        for mine in alike.values():
            visible = shown & self.admitted(queries[mine[0]])
            hidden = [self.hidden(queries[i]) for i in mine]
            ids[mine], scores[mine] = find(matrix, vectors[mine], k, None if visible.all() else visible, hidden, tasks)
        return ids, scores

    def admitted(self, q: Query) -> NDArray[np.bool_]:
        """Which steps [size] satisfy all that ``q`` asks for."""
        store = self.buffer.store
        c, mask = store.columns, np.ones(self.size, np.bool_)
        if q.source is not None:
            mask &= c["real"][: self.size] == (q.source == "real")
        if q.env is not None:
            env = store.number_of(f"v:{q.env}")
            mask &= c["env"][: self.size] == (-1 if env is None else env)
        if q.outcome is not None:
            mask &= c["outcome"][: self.size] == OUTCOMES.index(q.outcome)
        if q.min_policy_version is not None:
            mask &= c["version"][: self.size] >= q.min_policy_version
        return mask

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
