"""Care of a durable buffer: is it whole, and making it smaller without a moment in which a kill would lose anything."""

import os
import shutil
import sqlite3
import zlib

import numpy as np
from numpy.typing import NDArray

from dreamgym.core.errors import DataError
from dreamgym.core.files import write_atomic
from dreamgym.replay.columns import NEVER, OUTCOMES
from dreamgym.replay.database import DATABASE, POINTER, SCHEMA, TABLES, sync_folder
from dreamgym.replay.store import EpisodeStore, unpacked


def verify(store: EpisodeStore) -> list[str]:
    """What is wrong, in words; an empty list where nothing is: database, episodes, counts, a checksum of every written vector."""
    problems: list[str] = []
    for part, look in ((DATABASE, _wrong_rows), ("vectors", _wrong_vectors)):
        try:
            problems += look(store)
        except (sqlite3.DatabaseError, OSError) as e:  # damaged beyond what can be told apart
            problems.append(f"{part}: cannot be read ({e})")
    return problems


def _wrong_rows(store: EpisodeStore) -> list[str]:
    problems = [f"{DATABASE}: {row[0]}" for row in store.db.execute("PRAGMA integrity_check") if row[0] != "ok"]
    held = 0
    for name, outcomes, body in store.db.execute("SELECT name, outcomes, data FROM episode LEFT JOIN body USING (id) ORDER BY id"):
        try:
            steps = unpacked(body or b"").steps
        except DataError as e:
            problems.append(f"episode {name}: cannot be read ({e})")
            continue
        if bytes(OUTCOMES.index(t.outcome) for t in steps) != outcomes:
            problems.append(f"episode {name}: its steps differ from their outcomes")
        held += len(outcomes)
    counted = store.db.execute("SELECT coalesce(sum(steps), 0) FROM batch").fetchone()[0]
    if counted != held:
        problems.append(f"{DATABASE}: batches count {counted} steps, readable episodes hold {held}")
    return problems


def _wrong_vectors(store: EpisodeStore) -> list[str]:
    problems = []
    for encoder, identity in store.encoders().items():
        width = 4 * identity.dimension
        for first, steps, crc in store.db.execute("SELECT first, steps, crc FROM filled WHERE encoder=? ORDER BY first", (encoder,)):
            raw = os.pread(store.file(encoder), width * steps, width * first)
            if zlib.crc32(raw) != crc:
                last = first + steps - 1
                problems.append(f"{store.vector_path(encoder).name}: the vectors of steps {first} .. {last} ({identity.name}) are damaged")
    return problems


def compact(store: EpisodeStore, generation: int = NEVER) -> int:
    """Drop for good what was evicted up to ``generation``; returns the number of steps that went. Steps get new numbers."""
    gone = store.columns["evicted"]
    return _rewrite(store, (gone == NEVER) | (gone > generation), NEVER)


def rewind(store: EpisodeStore, generation: int) -> int:
    """Forget what was appended for generations after ``generation``, and evictions from them on; returns how many steps went."""
    late = (store.columns["generation"] > generation) | ((store.columns["evicted"] > generation) & (store.columns["evicted"] != NEVER))
    return _rewrite(store, store.columns["generation"] <= generation, generation) if late.any() else 0


def _rewrite(store: EpisodeStore, keep: NDArray[np.bool_], evictions: int) -> int:
    """Write the steps of ``keep`` into a new folder, with evictions up to generation ``evictions``, then point to it.

    Readers follow at their next ``refresh``; until then they read the old folder, which goes at the next rewriting. A kill at any
    moment leaves the old one or the new one.
    """
    if store.mode != "rw":
        raise DataError(f"{store.root}: was opened for reading; open it with mode='rw' to change it")
    with store.guard:
        before, old = len(store), store.folder
        target = store.root / f"data-{int(old.name.rpartition('-')[2]) + 1}"
        shutil.rmtree(target, ignore_errors=True)
        try:
            target.mkdir()
            _copy(store, keep, evictions, sqlite3.connect(target / DATABASE, isolation_level=None))
            for encoder in store.encoders():
                matrix = np.array(store.matrix(encoder)[keep])
                with open(target / f"vectors-{encoder}.f32", "wb") as f:
                    f.write(matrix.tobytes())
                    f.flush()
                    os.fsync(f.fileno())
            sync_folder(target)
            write_atomic(store.root / POINTER, f"{target.name}\n")
        except (OSError, sqlite3.Error) as e:
            shutil.rmtree(target, ignore_errors=True)
            raise DataError(f"{store.root}: cannot be rewritten ({e}); what was there is untouched") from e
        sync_folder(store.root)
        store.db.close()
        store.reopen(old)
        return before - len(store)


def _copy(store: EpisodeStore, keep: NDArray[np.bool_], evictions: int, db: sqlite3.Connection) -> None:
    """The rows of what is kept, with new numbers of steps."""
    renumbered = np.concatenate([[0], np.cumsum(keep)])
    db.execute("PRAGMA synchronous=FULL")
    db.executescript(f"BEGIN; {TABLES}")
    db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
    ids = [store.episode_id(place) for place in range(store.places()) if keep[store.span(place).start]]
    for table, columns in (("episode", 9), ("body", 2)):
        rows = (store.db.execute(f"SELECT * FROM {table} WHERE id=?", (i,)).fetchone() for i in ids)
        db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)
    db.execute("UPDATE episode SET evicted=NULL WHERE evicted > ?", (evictions,))
    for name, generation, first, steps in store.db.execute("SELECT name, generation, first, steps FROM batch ORDER BY first").fetchall():
        start, end = int(renumbered[first]), int(renumbered[first + steps])
        if generation <= evictions:
            db.execute("INSERT INTO batch VALUES (?, ?, ?, ?)", (name, generation, start, end - start))
    db.executemany("INSERT INTO encoder VALUES (?, ?, ?, ?, ?, ?)", store.db.execute("SELECT * FROM encoder"))
    for encoder in store.encoders():
        kept, matrix = store.filled(encoder)[keep], store.matrix(encoder)[keep]
        for first, last in _runs(kept):
            crc = zlib.crc32(np.ascontiguousarray(matrix[first:last]).tobytes())
            db.execute("INSERT INTO filled VALUES (?, ?, ?, ?)", (encoder, first, last - first, crc))
    db.execute("COMMIT")
    db.close()


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one past the last index of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
