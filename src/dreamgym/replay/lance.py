"""The same buffer on LanceDB: many trainers write to one, on a disk or an object store (the extra [lance]).

    buffer = LanceReplay("s3://bucket/experiences", writer="trainer-3")      # or a local folder. Satisfies Replay
    buffer.add(episodes)                                                    # by any number of processes at once
    hits = buffer.snapshot().topk(queries, k=2)

One row per step, one commit per call of ``add``: an episode is there whole or not at all. Writers do not lock each other out: who
finds that another has committed meanwhile tries again on top of it (optimistic), and a step has a key, so that what two add at once
is there once (so trainers that share a buffer need seeds of their own: they name their episodes by it). Steps have no order of
arrival here; ties go to the earlier generation, then by the episode's id.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamgym.core.errors import DataError, MissingExtraError
from dreamgym.core.types import Episode, Transition
from dreamgym.replay.columns import NEVER, OUTCOMES
from dreamgym.replay.contract import Hit, Query, found_from, may_enter
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import Encoder, identity_of
from dreamgym.replay.store import packed, unpacked

TABLE, IDENTITY = "steps", b"dreamgym.encoder"
SPARE = 64
"""Candidates beyond k: an excluded episode's steps are mostly each other's neighbours."""
ORDER = ["key", "episode", "task", "generation", "step", "_distance"]


class LanceReplay:
    """Steps in the table ``steps`` at ``uri``, encoded by ``encoder`` (default: hashing). ``writer`` names who adds by this object."""

    def __init__(self, uri: str, encoder: Encoder | None = None, writer: str = "") -> None:
        self.uri, self.encoder, self.writer = uri, encoder or HashingEncoder(), writer
        self._db = _library("lancedb").connect(uri)
        identity = json.dumps(identity_of(self.encoder)).encode()
        try:
            try:
                self.table = self._db.open_table(TABLE)
            except (FileNotFoundError, ValueError):  # not there; another process may make it in this moment
                self.table = self._db.create_table(TABLE, schema=_schema(self.encoder.dimension, identity), exist_ok=True)
            held = (self.table.schema.metadata or {}).get(IDENTITY, b"[]")
        except (OSError, RuntimeError, ValueError) as e:
            raise DataError(f"{uri}: cannot be opened as a buffer ({e})") from e
        if held != identity:
            name = (json.loads(held) or ["none"])[0]
            raise DataError(f"{uri}: holds no vectors of the encoder {self.encoder.name} (but of: {name}); open it with this one")

    def __len__(self) -> int:
        """Steps, those of other writers included."""
        self.table.checkout_latest()
        return int(self.table.count_rows())

    def prepare(self, episodes: Sequence[Episode]) -> None:
        """Nothing: ``add`` encodes."""

    def add(self, episodes: Iterable[Episode], generation: int | None = None) -> int:
        """As ``ReplayBuffer.add``, in one commit; safe beside other writers. Returns how many steps came in by this call."""
        new = {e.id: e for e in episodes if may_enter(e)}
        if not new:
            return 0
        vectors = self.encoder.encode([(t.state, t.action) for e in new.values() for t in e.steps])
        rows = self._rows(list(new.values()), vectors, generation)
        done = self._changed(lambda: self.table.merge_insert("key").when_not_matched_insert_all().execute(rows))
        return int(done.num_inserted_rows)

    def _rows(self, episodes: Sequence[Episode], vectors: Any, generation: int | None) -> Any:
        pa = _library("pyarrow")
        steps = [(e, n, t) for e in episodes for n, t in enumerate(e.steps)]
        first = {e.id: found_from(e, generation) for e in episodes}
        columns = {
            "key": [f"{e.id}#{n}" for e, n, _ in steps],
            "episode": [e.id for e, _, _ in steps],
            "task": [e.task.id for e, _, _ in steps],
            "env": [e.env for e, _, _ in steps],
            "real": [e.source == "real" for e, _, _ in steps],
            "outcome": [OUTCOMES.index(t.outcome) for _, _, t in steps],
            "version": [e.policy_version for e, _, _ in steps],
            "generation": [first[e.id] for e, _, _ in steps],
            "evicted": [NEVER] * len(steps),
            "evicted_by": [None] * len(steps),
            "writer": [self.writer] * len(steps),
            "step": [n for _, n, _ in steps],
            "body": [t.model_dump_json(exclude_defaults=True).encode() for _, _, t in steps],
            "whole": [packed(e) if n == 0 else None for e, n, _ in steps],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors, np.float32).ravel()), vectors.shape[1]),
        }
        return pa.table(columns, schema=self.table.schema)

    def evict(self, episodes: Sequence[str], generation: int) -> None:
        """Mark episodes as gone from ``generation`` on."""
        if episodes:
            values = {"evicted": generation, "evicted_by": self.writer}
            self._changed(lambda: self.table.update(where=f"episode IN ({_list(episodes)}) AND evicted = {NEVER}", values=values))

    def rewind(self, generation: int) -> None:
        """Forget what this writer added for generations after ``generation``, and what it evicted after it."""
        mine, late = _quoted(self.writer), f"evicted > {generation} AND evicted < {NEVER}"
        self._changed(lambda: self.table.delete(f"writer = {mine} AND generation > {generation}"))
        self._changed(lambda: self.table.update(where=f"evicted_by = {mine} AND {late}", values={"evicted": NEVER, "evicted_by": None}))

    def held(self) -> int:
        """Steps of all writers that can be found."""
        self.table.checkout_latest()
        return int(self.table.count_rows(f"evicted = {NEVER}"))

    def _changed(self, work: Callable[[], Any]) -> Any:
        """What ``work`` says, on the newest version. Raises ``DataError`` where it cannot be written."""
        self.table.checkout_latest()
        try:
            return work()
        except (OSError, RuntimeError, ValueError) as e:
            raise DataError(f"{self.uri}: cannot be written ({e}); nothing of this call was changed") from e

    def episodes(self) -> Iterator[Episode]:
        """All that are not evicted, by generation and id."""
        self.table.checkout_latest()
        found = self.table.search().where(f"step = 0 AND evicted = {NEVER}").select(["episode", "generation", "whole"]).limit(_ALL)
        for row in sorted(found.to_arrow().to_pylist(), key=lambda r: (r["generation"], r["episode"])):
            yield unpacked(row["whole"])

    def snapshot(self, generation: int | None = None) -> "LanceSnapshot":
        """The table as it is now (or what was there for an iteration); later commits stay invisible to it."""
        view = self._db.open_table(TABLE)
        view.checkout(view.version)
        return LanceSnapshot(self, view, generation)

    def metrics(self) -> dict[str, float]:
        """Steps that are in, and the share of real ones among them."""
        live = self.held()
        return {"buffer_steps": float(live), "buffer_real": self.table.count_rows(f"evicted = {NEVER} AND real") / live if live else 1.0}

    def compact(self) -> None:
        """Merge the small files that appends leave; readers of older versions go on (they are kept for a week)."""
        self.table.checkout_latest()
        self.table.optimize()


_ALL = 2**31 - 1


@dataclass(frozen=True)
class LanceSnapshot:
    """One version of the table. Satisfies ``Retrieval``."""

    buffer: LanceReplay
    table: Any
    generation: int | None = None

    def __len__(self) -> int:
        return int(self.table.count_rows())

    def topk(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """As ``Snapshot.topk``, exact; queries with equal filters go in one search."""
        vectors = self.buffer.encoder.encode([(q.state, q.action) for q in queries])
        alike: dict[str, list[int]] = {}
        for i, q in enumerate(queries):
            alike.setdefault(self._where(q), []).append(i)
        best: list[list[dict[str, Any]]] = [[] for _ in queries]
        for where, mine in alike.items() if k else ():
            todo, limit = mine, k + SPARE
            while todo:
                found = self._search(vectors[todo], where, limit)
                short = []
                for i, rows in zip(todo, found, strict=True):
                    best[i] = [r for r in rows if not _excluded(queries[i], r)][:k]
                    open_end = len(best[i]) < k or best[i][-1]["_distance"] >= rows[-1]["_distance"]  # ties may go on behind the end
                    if len(rows) == limit and open_end:
                        short.append(i)
                todo, limit = short, 4 * limit
        return self._hits(best)

    def _where(self, q: Query) -> str:
        """What the query asks for, and what is visible, as SQL."""
        parts = [f"evicted = {NEVER}" if self.generation is None else f"generation <= {self.generation} AND evicted > {self.generation}"]
        if q.source is not None:
            parts.append("real" if q.source == "real" else "NOT real")
        if q.env is not None:
            parts.append(f"env = {_quoted(q.env)}")
        if q.outcome is not None:
            parts.append(f"outcome = {OUTCOMES.index(q.outcome)}")
        if q.min_policy_version is not None:
            parts.append(f"version >= {q.min_policy_version}")
        return " AND ".join(parts)

    def _search(self, vectors: Any, where: str, limit: int) -> list[list[dict[str, Any]]]:
        """For each vector its nearest rows, nearest first, ties by generation, episode and step."""
        found = self.table.search(vectors, vector_column_name="vector").distance_type("dot").where(where, prefilter=True)
        rows: list[list[dict[str, Any]]] = [[] for _ in vectors]
        for row in found.select(ORDER).limit(limit).to_arrow().to_pylist():
            rows[row.get("query_index", 0)].append(row)
        for part in rows:
            part.sort(key=lambda r: (r["_distance"], r["generation"], r["episode"], r["step"]))
        return rows

    def _hits(self, best: list[list[dict[str, Any]]]) -> list[list[Hit]]:
        keys = sorted({r["key"] for rows in best for r in rows})
        if not keys:
            return [[] for _ in best]
        wanted = self.table.search().where(f"key IN ({_list(keys)})").select(["key", "real", "body"]).limit(len(keys))
        bodies = {
            r["key"]: (Transition.model_validate_json(r["body"]), "real" if r["real"] else "dream")
            for r in wanted.to_arrow().to_pylist()
        }
        return [[_hit(r, *bodies[r["key"]]) for r in rows] for rows in best]


def _hit(row: dict[str, Any], transition: Transition, source: Any) -> Hit:
    return Hit(transition, row["episode"], row["task"], source, 1.0 - float(row["_distance"]))


def _excluded(q: Query, row: dict[str, Any]) -> bool:
    return bool(q.exclude_episode == row["episode"] or q.exclude_task == row["task"])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _list(texts: Sequence[str]) -> str:
    return ", ".join(_quoted(t) for t in texts)


def _schema(dimension: int, identity: bytes) -> Any:
    pa = _library("pyarrow")
    key = pa.field("key", pa.string(), nullable=False, metadata={b"lance-schema:unenforced-primary-key": b"true"})
    fields = [
        key,
        *(pa.field(name, pa.string()) for name in ("episode", "task", "env", "writer", "evicted_by")),
        pa.field("real", pa.bool_()),
        *(pa.field(name, pa.int32()) for name in ("outcome", "version", "generation", "evicted", "step")),
        pa.field("body", pa.binary()),
        pa.field("whole", pa.binary()),
        pa.field("vector", pa.list_(pa.float32(), dimension)),
    ]
    return pa.schema(fields, metadata={IDENTITY: identity})


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise MissingExtraError(name, "lance") from e
