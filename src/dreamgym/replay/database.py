"""The folder of a durable buffer: a pointer to the data, one writer's lock, SQLite with its tables.

buffer/current          names the folder in use; compaction writes another one and replaces this file
buffer/writer.lock      held by the one writer; gone with its process, however that ends
buffer/data-1/episodes.sqlite, vectors-1.f32, ...
"""

import fcntl
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Literal

from dreamgym.core.errors import DataError
from dreamgym.core.files import write_atomic

SCHEMA = 2
POINTER, LOCK, DATABASE = "current", "writer.lock", "episodes.sqlite"
Mode = Literal["rw", "ro"]
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE batch (name TEXT PRIMARY KEY, generation INTEGER NOT NULL, first INTEGER NOT NULL, steps INTEGER NOT NULL);
CREATE TABLE episode (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, env TEXT NOT NULL, task TEXT NOT NULL, source TEXT NOT NULL,
    policy_version INTEGER NOT NULL, generation INTEGER NOT NULL, evicted INTEGER, outcomes BLOB NOT NULL);
CREATE INDEX evicted ON episode (evicted) WHERE evicted IS NOT NULL;
CREATE TABLE body (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE encoder (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, revision TEXT NOT NULL, dimension INTEGER NOT NULL, normalised INTEGER NOT NULL,
    serving INTEGER NOT NULL, UNIQUE (name, revision, dimension, normalised));
CREATE TABLE filled (
    encoder INTEGER NOT NULL, first INTEGER NOT NULL, steps INTEGER NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (encoder, first));
"""
"""Texts are apart from what opening reads: ``body`` holds the episode of the same ``id``."""
MIGRATIONS = {
    1: """
CREATE INDEX evicted ON episode (evicted) WHERE evicted IS NOT NULL;
CREATE TABLE body (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
INSERT INTO body SELECT id, body FROM episode;
ALTER TABLE episode DROP COLUMN body;
""",
}
"""What brings a schema to the next one; a writer does it when it opens, in one transaction."""


def take_lock(root: Path) -> int:
    """The descriptor of the one writer's lock. Raises ``DataError`` that names the process which has it."""
    lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        who = os.pread(lock, 20, 0).decode(errors="replace").strip() or "?"
        os.close(lock)
        raise DataError(f"{root}: process {who} is writing to this buffer, which takes one writer; stop it, or open with mode='ro'") from e
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def data_folder(root: Path, mode: Mode, kept: Path | None = None) -> Path:
    """The folder in use; a writer makes the first one, and removes others but ``kept``: older ones, and what a kill left half made."""
    pointer = root / POINTER
    if not pointer.exists():
        if mode == "ro":
            raise DataError(f"{root}: holds no buffer; check the path, or let a writer make one")
        if any(root.glob(f"data-*/{DATABASE}")):
            raise DataError(f"{pointer}: is missing beside data; write the name of the folder that holds them into this file")
        (root / "data-1").mkdir(exist_ok=True)
        write_atomic(pointer, "data-1\n")
        sync_folder(root)
    folder = root / pointer.read_text(encoding="utf-8").strip()
    if not folder.is_dir():
        raise DataError(f"{pointer}: names {folder.name}, which is not there; the buffer is damaged, import an export of it")
    for other in root.glob("data-*") if mode == "rw" else ():
        if other not in (folder, kept):
            shutil.rmtree(other, ignore_errors=True)  # a reader may be making files in it; it goes the next time
    return folder


def connect(folder: Path, mode: Mode, durable: bool = True) -> sqlite3.Connection:
    """A connection with the tables in place. Raises ``DataError`` on a damaged file or another schema."""
    path = folder / DATABASE
    if mode == "ro" and not path.exists():
        raise DataError(f"{path}: is missing; its writer has not made it yet, or the buffer is damaged")
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA busy_timeout=5000")
        if mode == "ro":
            db.execute("PRAGMA query_only=1")
        else:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                db.executescript(f"BEGIN; {TABLES} INSERT INTO meta VALUES ('schema', '{SCHEMA}'); COMMIT;")
        schema = schema_of(db)
        while mode == "rw" and schema in MIGRATIONS:
            db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[schema]} UPDATE meta SET value='{schema + 1}' WHERE key='schema'; COMMIT;")
            schema = schema_of(db)
    except (sqlite3.Error, TypeError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); restore it from a copy, or import an export of it") from e
    if schema != SCHEMA:
        old = "open it once for writing, which brings it up to date" if schema in MIGRATIONS else "use the version that wrote it"
        raise DataError(f"{path}: has schema {schema}, this version reads {SCHEMA}; {old}")
    return db


def schema_of(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()[0])


def sync_folder(folder: Path) -> None:
    """Make names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
