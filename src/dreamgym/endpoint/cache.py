"""Finished replies on disk, by request and seed: a run that is repeated or resumed asks the server nothing twice."""

import sqlite3
from pathlib import Path

from dreamgym.core.errors import DataError
from dreamgym.endpoint.config import Answer


class ReplyCache:
    """A SQLite file of replies. Several processes may share it; a kill at any moment leaves it whole."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")
        except sqlite3.DatabaseError as e:
            raise DataError(f"{path}: not a usable reply cache ({e}); remove it or name another file") from e
        self._path = path

    def get(self, key: str) -> Answer | None:
        row = self._db.execute("SELECT answer FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer.model_validate_json(row[0])

    def put(self, key: str, answer: Answer) -> None:
        """Raises ``DataError`` where the file cannot be written (a full disk)."""
        try:
            self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, answer.model_dump_json()))
        except sqlite3.DatabaseError as e:
            raise DataError(f"{self._path}: a reply could not be kept ({e})") from e

    def close(self) -> None:
        self._db.close()
