"""Episodes on disk, as a database keeps them: whole or not at all, one writer, many readers, vectors beside them.

    store = EpisodeStore(Path("runs/mine/buffer"))
    encoder = store.add_encoder(EncoderIdentity("hashing", "1", 128, True), serving=True)
    store.append(episodes, {encoder: vectors}, name="iteration 3", generation=3)     # durable when it returns
    store.transition(17), store.columns["task"][17], store.matrix(encoder)[17]

SQLite (WAL, ``synchronous=FULL``) is the truth, one file of float32 rows per encoder stands beside it. A batch's vectors are
written and fsynced first and counted by the commit that follows, so whatever a crash left behind the committed count is cut
off when the next writer opens. Steps are numbered 0, 1, ... in the order of their arrival (an episode's branches after its
transitions); step i has row i in every file. Nothing in here knows what is retrieved, or how states are encoded.
"""

import os
import shutil
import sqlite3
import tempfile
import threading
import time
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreamgym.core.errors import DataError
from dreamgym.core.types import Episode, Transition
from dreamgym.replay.columns import NEVER, OUTCOMES, Columns, Ints
from dreamgym.replay.database import POINTER, Mode, connect, data_folder, sync_folder, take_lock

Vectors = NDArray[np.float32]
KEPT = 20_000
"""Episodes that are kept after they were read."""


class EncoderIdentity(NamedTuple):
    """What makes two vectors comparable."""

    name: str
    revision: str
    dimension: int
    normalised: bool


class EpisodeStore:
    """A folder of episodes and vectors. ``root=None``: a temporary one, not fsynced, gone with the object."""

    def __init__(self, root: Path | None = None, mode: Mode = "rw") -> None:
        temporary = tempfile.mkdtemp(prefix="dreamgym-buffer-") if root is None else None
        self.durable = temporary is None
        self.root, self.mode = Path(temporary or str(root)), mode
        if mode == "rw":
            self.root.mkdir(parents=True, exist_ok=True)
        self.guard = threading.RLock()
        """Held while the store changes: a backfill may run in a thread beside the one that appends."""
        self._open = _Open(take_lock(self.root) if mode == "rw" else -1)
        self._end = weakref.finalize(self, _close, self._open, temporary)
        try:
            self.reopen()
        except BaseException:
            self._end()
            raise

    def reopen(self, kept: Path | None = None) -> None:
        """Read the folder that the pointer names, from the start; ``kept`` is left for its readers."""
        self._open.release_files()
        for attempt in range(5):
            try:
                self.folder = data_folder(self.root, self.mode, kept)
                self.db = connect(self.folder, self.mode, self.durable)
                break
            except DataError:
                if self.mode == "rw" or attempt == 4:
                    raise
                time.sleep(0.02)  # a writer may be moving in this moment
        self.columns = Columns()
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._places: dict[int, int] = {}
        self._read: dict[int, Episode] = {}
        self.refresh()
        if self.mode == "rw":
            self._fit_files()

    def refresh(self) -> int:
        """Take in what was committed since, by this process or another; returns the number of steps."""
        if self.mode == "ro" and self._moved():
            self.db.close()
            self.reopen()
            return len(self)
        wanted = "SELECT id, name, task, source, generation, outcomes, env, policy_version FROM episode WHERE id > ? ORDER BY id"
        rows = self.db.execute(wanted, (self._ids[-1] if self._ids else 0,)).fetchall()
        if rows:
            sizes = [len(r[5]) for r in rows]
            first = len(self)

            def per_step(values: list[int]) -> Ints:
                return np.repeat(np.array(values, dtype=np.int32), sizes)

            self.columns.extend({
                "episode": per_step([self._code(f"e:{r[1]}") for r in rows]),
                "task": per_step([self._code(f"t:{r[2]}") for r in rows]),
                "env": per_step([self._code(f"v:{r[6]}") for r in rows]),
                "real": per_step([int(r[3] == "real") for r in rows]),
                "outcome": np.frombuffer(b"".join(r[5] for r in rows), dtype=np.uint8).astype(np.int32),
                "version": per_step([r[7] for r in rows]),
                "generation": per_step([r[4] for r in rows]),
                "evicted": per_step([NEVER] * len(rows)),
            })  # fmt: skip
            self._starts += (first + np.concatenate([[0], np.cumsum(sizes[:-1])])).astype(int).tolist()
            self._places |= {self._code(f"e:{r[1]}"): len(self._ids) + i for i, r in enumerate(rows)}
            self._ids += [r[0] for r in rows]
        if self.mode == "ro" or len(rows) == len(self._ids):  # a writer knows what it evicts, but for what it finds when it opens
            gone = dict(self.db.execute("SELECT id, evicted FROM episode WHERE evicted IS NOT NULL").fetchall())
            for place, number in enumerate(self._ids) if gone else ():
                if number in gone:
                    self.columns["evicted"][self.span(place)] = gone[number]
        return len(self)

    # reading

    def __len__(self) -> int:
        """Steps."""
        return len(self.columns)

    def span(self, place: int) -> slice:
        """The steps of the episode at ``place`` in the order of arrival."""
        return slice(self._starts[place], self._starts[place + 1] if place + 1 < len(self._starts) else len(self))

    def span_of(self, episode: int) -> slice:
        """The steps of the episode with this number (``number_of``)."""
        return self.span(self._places[episode])

    def place_of(self, episode: int) -> int:
        """Where the episode with this number stands in the order of arrival."""
        return self._places[episode]

    def number_of(self, name: str) -> int | None:
        """The number of a name that occurs (``e:`` episode, ``t:`` task, ``v:`` environment), else None."""
        return self._codes.get(name)

    def transition(self, step: int) -> Transition:
        place = bisect_right(self._starts, step) - 1
        return self.episode(place).steps[step - self._starts[place]]

    def episodes(self) -> Iterator[Episode]:
        """In the order of their arrival, without those that were evicted."""
        for (body,) in self.db.execute("SELECT data FROM body JOIN episode USING (id) WHERE evicted IS NULL ORDER BY id"):
            yield unpacked(body)

    def places(self) -> int:
        """Episodes, evicted ones included."""
        return len(self._ids)

    def episode_id(self, place: int) -> int:
        """Its row in the database."""
        return self._ids[place]

    def episode(self, place: int) -> Episode:
        """The episode at ``place``; those read lately are kept."""
        if place not in self._read:
            if len(self._read) >= KEPT:
                self._read.clear()
            self._read[place] = self._episode(place)
        return self._read[place]

    def _episode(self, place: int) -> Episode:
        found = self.db.execute("SELECT data FROM body WHERE id=?", (self._ids[place],)).fetchone()
        return unpacked(found[0] if found else b"")

    def _code(self, name: str) -> int:
        if name not in self._codes:
            self._codes[name] = len(self.names)
            self.names.append(name)
        return self._codes[name]

    # writing

    def append(self, episodes: Sequence[Episode], vectors: Mapping[int, Vectors], name: str, generation: int = 0) -> range:
        """Commit ``episodes``, with a row per step of each encoder that is given; all or nothing. Returns the numbers of their steps.

        A batch whose ``name`` is in already is not added again: who was killed before hearing so may repeat it. Raises
        ``DataError`` on an episode that is in already or has no step, on vectors of a wrong shape, and where the disk is
        full; then nothing has changed.
        """
        known = self.db.execute("SELECT first, steps FROM batch WHERE name=?", (name,)).fetchone()
        if known:
            return range(known[0], known[0] + known[1])
        first, total = len(self), sum(len(e.steps) for e in episodes)
        if empty := next((e.id for e in episodes if not e.steps), None):
            raise DataError(f"episode {empty}: has no step to keep")
        rows, bodies = [], []
        for i, e in enumerate(episodes, (self._ids[-1] if self._ids else 0) + 1):
            outcomes = bytes(OUTCOMES.index(t.outcome) for t in e.steps)
            rows.append((i, e.id, e.env, e.task.id, e.source, e.policy_version, generation, outcomes))
            bodies.append((i, packed(e)))
        if self.mode == "rw" and (serving := self.serving()) is not None and serving not in vectors:
            raise DataError(f"{self.root}: {self.encoders()[serving].name} serves this buffer, and the batch has no vectors of it")
        with self.guard:  # until it is taken in: a thread beside this one must not see the commit without its steps
            with self.transaction():
                for encoder, matrix in vectors.items():
                    self.put(encoder, first, matrix, total)
                self._fit_files(first + total)
                self.db.execute("INSERT INTO batch VALUES (?, ?, ?, ?)", (name, generation, first, total))
                columns = "id, name, env, task, source, policy_version, generation, outcomes"
                self.db.executemany(f"INSERT INTO episode ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
                self.db.executemany("INSERT INTO body VALUES (?, ?)", bodies)
            self.refresh()
        return range(first, first + total)

    def evict(self, places: Sequence[int], generation: int) -> None:
        """Mark episodes as gone from ``generation`` on; their steps keep their numbers until the store is compacted."""
        with self.transaction():
            marks = [(generation, self._ids[p]) for p in places]
            self.db.executemany("UPDATE episode SET evicted=? WHERE id=? AND evicted IS NULL", marks)
        for p in places:
            part = self.columns["evicted"][self.span(p)]
            part[part == NEVER] = generation

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or none, the vector files included; SQLite's and the disk's refusals as ``DataError``."""
        if self.mode != "rw":
            raise DataError(f"{self.root}: was opened for reading; open it with mode='rw' to write")
        with self.guard:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException as e:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                self._fit_files()
                if isinstance(e, sqlite3.IntegrityError) and "episode.name" in str(e):
                    raise DataError(f"{self.root}: an episode of this batch is in already; nothing of the batch was added") from e
                if isinstance(e, OSError | sqlite3.Error):
                    raise DataError(f"{self.root}: cannot be written ({e}); what was committed is untouched, this was not added") from e
                raise

    # vectors

    def add_encoder(self, identity: EncoderIdentity, serving: bool = False) -> int:
        """The number of an encoder; a new one has no vectors yet."""
        found = next((n for n, known in self.encoders().items() if known == identity), None)
        if found is not None:
            return found
        with self.transaction():
            values = (identity.name, identity.revision, identity.dimension, int(identity.normalised), int(serving))
            cursor = self.db.execute("INSERT INTO encoder (name, revision, dimension, normalised, serving) VALUES (?, ?, ?, ?, ?)", values)
            if serving:
                self.db.execute("UPDATE encoder SET serving = (id = ?)", (cursor.lastrowid,))
            self._fit_files()
        return int(cursor.lastrowid or 0)

    def encoders(self) -> dict[int, EncoderIdentity]:
        rows = self.db.execute("SELECT id, name, revision, dimension, normalised FROM encoder ORDER BY id")
        return {n: EncoderIdentity(name, revision, dimension, bool(norm)) for n, name, revision, dimension, norm in rows}

    def serving(self) -> int | None:
        """The encoder whose vectors answer queries; None before there is one."""
        row = self.db.execute("SELECT id FROM encoder WHERE serving=1").fetchone()
        return int(row[0]) if row else None

    def serve(self, encoder: int) -> None:
        """From now on ``encoder`` answers. Raises ``DataError`` where a step lacks its vector."""
        if missing := int((~self.filled(encoder)).sum()):
            raise DataError(f"{self.root}: {missing} steps lack a vector of {self.encoders()[encoder].name}; finish its backfill")
        with self.transaction():
            self.db.execute("UPDATE encoder SET serving = (id = ?)", (encoder,))

    def write_vectors(self, encoder: int, first: int, matrix: Vectors) -> None:
        """Vectors of the steps from ``first`` on, committed together."""
        if first < 0 or first + len(matrix) > len(self):
            raise DataError(f"{self.root}: vectors for the steps {first} .. {first + len(matrix) - 1}, there are {len(self)} steps")
        with self.transaction():
            self.put(encoder, first, matrix, len(matrix))

    def matrix(self, encoder: int) -> Vectors:
        """All rows of an encoder [steps, dimension], mapped from its file; where ``filled`` is false a row means nothing."""
        dimension = self.encoders()[encoder].dimension
        if not len(self):
            return np.zeros((0, dimension), np.float32)
        path = self.vector_path(encoder)
        if not path.exists() or path.stat().st_size < 4 * dimension * len(self):
            if self.mode == "ro" and self._moved():
                raise DataError(f"{self.root}: was compacted or rewound more than once since it was read; refresh, and take a new snapshot")
            raise DataError(f"{path}: is shorter than its {len(self)} steps; the file is damaged, import an export of the buffer")
        return np.memmap(path, dtype=np.float32, mode="r", shape=(len(self), dimension))

    def filled(self, encoder: int) -> NDArray[np.bool_]:
        """Which steps have a vector of ``encoder``."""
        mask = np.zeros(len(self), np.bool_)
        for first, steps in self.db.execute("SELECT first, steps FROM filled WHERE encoder=?", (encoder,)):
            mask[first : first + steps] = True
        return mask

    def put(self, encoder: int, first: int, matrix: Vectors, steps: int) -> None:
        """Rows on disk, fsynced, and their note in the open transaction."""
        dimension = self.encoders()[encoder].dimension
        data = np.ascontiguousarray(matrix, dtype=np.float32)
        if data.shape != (steps, dimension):
            raise DataError(f"vectors of encoder {encoder} have the shape {data.shape}, needed is {(steps, dimension)}")
        if not np.isfinite(data).all():
            raise DataError(f"vectors of encoder {encoder} hold numbers that are not finite")
        overlapping = "SELECT first FROM filled WHERE encoder=? AND first < ? AND first + steps > ?"
        if self.db.execute(overlapping, (encoder, first + steps, first)).fetchone():
            raise DataError(f"vectors of encoder {encoder}: some of the steps {first} .. {first + steps - 1} have theirs already")
        raw, file = data.tobytes(), self.file(encoder)
        view, at = memoryview(raw), 4 * dimension * first
        while view:
            written = os.pwrite(file, view, at)
            view, at = view[written:], at + written
        if self.durable:
            os.fsync(file)
        self.db.execute("INSERT INTO filled VALUES (?, ?, ?, ?)", (encoder, first, steps, zlib.crc32(raw)))

    def vector_path(self, encoder: int) -> Path:
        return self.folder / f"vectors-{encoder}.f32"

    def file(self, encoder: int) -> int:
        """An open descriptor of an encoder's vectors."""
        if encoder not in self._open.files:
            path = self.vector_path(encoder)
            new, flags = not path.exists(), os.O_RDONLY if self.mode == "ro" else os.O_RDWR | os.O_CREAT
            self._open.files[encoder] = os.open(path, flags, 0o644)
            if new and self.durable:
                sync_folder(self.folder)
        return self._open.files[encoder]

    def _fit_files(self, steps: int | None = None) -> None:
        """Every vector file has a row per (committed) step: what a crash left is cut, what is not encoded yet is a hole."""
        for encoder, identity in self.encoders().items():
            os.ftruncate(self.file(encoder), 4 * identity.dimension * (len(self) if steps is None else steps))

    @property
    def numbering(self) -> str:
        """Changes when steps get other numbers: by compaction, and when some are forgotten."""
        return self.folder.name

    # the end

    def _moved(self) -> bool:
        """Whether a writer has changed to another folder."""
        return (self.root / POINTER).read_text(encoding="utf-8").strip() != self.folder.name

    def close(self) -> None:
        self.db.close()
        self._end()


class _Open:
    """What a store holds of the operating system; closed with it, or when nobody knows it any more."""

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.files: dict[int, int] = {}

    def release_files(self) -> None:
        for file in self.files.values():
            os.close(file)
        self.files = {}


def _close(held: _Open, temporary: str | None) -> None:
    held.release_files()
    if held.lock >= 0:
        os.close(held.lock)
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)


def packed(episode: Episode) -> bytes:
    return zlib.compress(episode.model_dump_json(exclude_defaults=True).encode(), 1)


def unpacked(body: bytes) -> Episode:
    """Raises ``DataError`` on damage."""
    try:
        return Episode.model_validate_json(zlib.decompress(body))
    except (zlib.error, ValueError) as e:
        raise DataError(f"a stored episode cannot be read ({e}); dreamgym buffer verify names it") from e
