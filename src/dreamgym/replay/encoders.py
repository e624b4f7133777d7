"""φ(s, a) by a text-embedding model: any sentence-transformers model in this process, or an OpenAI-compatible server.

    encoder = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")
    buffer = ReplayBuffer(folder, encoder)

``HashingEncoder`` (``encoder.py``) needs neither and is the default. All give unit vectors; what makes two vectors comparable
(name, revision, dimension) is stored with them. Equal texts are encoded once: in a call, and with ``EncodedTexts`` ever.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from dreamgym.core.errors import DataError, EndpointError, MissingExtraError
from dreamgym.core.state import State
from dreamgym.replay.store import EncoderIdentity, Vectors

Pair = tuple[State, str]
TEXT = "text1"
"""Names how ``text_of`` writes a pair; part of what makes two vectors comparable."""
FIRST_LINES = 8
"""Lines of a state that a text encoder reads where the action names nothing in it."""


class Encoder(Protocol):
    """Encodes (state, action) pairs to unit vectors."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def remembers(self) -> bool:
        """Whether it keeps what it has encoded, so that asking again costs nothing."""
        ...

    def encode(self, pairs: Sequence[Pair]) -> Vectors:
        """Unit vectors [pairs, dimension]."""
        ...


def identity_of(encoder: Encoder) -> EncoderIdentity:
    """What is stored with its vectors."""
    return EncoderIdentity(encoder.name, encoder.revision, encoder.dimension, True)


def text_of(pair: Pair) -> str:
    """What a text encoder reads: the action's first word, the action, and the state's lines that name a word of it (else the first ones).

    With the whole state a small model finds states that look alike, whatever is done in them (``benchmarks.replay_backfill``).
    """
    state, action = pair
    words = set(action.split())
    plain = [" ".join(s.replace("[", " ").replace("]", " ").replace(":", " ").split()) for s in state]
    near = [s for s in plain if not words.isdisjoint(s.split())]
    return ". ".join([*action.split()[:1], action, *(near or plain[:FIRST_LINES])])


class EncodedTexts:
    """Vectors on disk by the hash of their text, of one encoder; ``path=None`` keeps them for this process only."""

    def __init__(self, path: Path | None, encoder: str) -> None:
        self._encoder, self._where, self._one_at_a_time = encoder, path or "memory", threading.Lock()
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
            columns = "encoder TEXT, hash BLOB, vector BLOB, PRIMARY KEY (encoder, hash)"
            self._db.execute(f"CREATE TABLE IF NOT EXISTS text ({columns}) WITHOUT ROWID")
        except sqlite3.Error as e:
            raise DataError(f"{path}: not a usable cache of encoded texts ({e}); remove it or name another file") from e

    def encode(self, texts: Sequence[str], dimension: int, encode: Callable[[list[str]], Vectors]) -> Vectors:
        """Vectors of ``texts``; ``encode`` is asked for those that are not known, each once, one thread after the other."""
        with self._one_at_a_time:
            try:
                return self._encoded(texts, dimension, encode)
            except sqlite3.Error as e:
                raise DataError(f"{self._where}: encoded texts cannot be kept ({e}); free its disk, or name another file") from e

    def _encoded(self, texts: Sequence[str], dimension: int, encode: Callable[[list[str]], Vectors]) -> Vectors:
        hashes = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in texts]
        known: dict[bytes, bytes] = {}
        for start in range(0, len(hashes), 500):
            part = hashes[start : start + 500]
            asked = f"SELECT hash, vector FROM text WHERE encoder=? AND hash IN ({', '.join('?' * len(part))})"
            known |= dict(self._db.execute(asked, (self._encoder, *part)).fetchall())
        new = {h: t for h, t in zip(hashes, texts, strict=True) if h not in known}
        if new:
            made = np.ascontiguousarray(encode(list(new.values())), dtype=np.float32)
            rows = [(self._encoder, h, v.tobytes()) for h, v in zip(new, made, strict=True)]
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR IGNORE INTO text VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")
            known |= {h: v for _, h, v in rows}
        return np.frombuffer(b"".join(known[h] for h in hashes), dtype=np.float32).reshape(len(texts), dimension)


class SentenceEncoder:
    """A sentence-transformers model, by hub name or folder."""

    remembers = True

    def __init__(self, model: str | Path, cache: Path | None = None, batch: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as e:
            raise MissingExtraError("sentence-transformers", "sentence") from e
        try:
            self._model = SentenceTransformer(str(model))
        except (OSError, ValueError) as e:
            raise DataError(f"{model}: holds no model that sentence-transformers can load ({e})") from e
        self._batch = batch
        self.name = Path(model).name if Path(model).exists() else str(model)
        weights = _revision(Path(model)) if Path(model).is_dir() else _commit(self._model[0])
        self.revision = f"{weights}+{TEXT}"
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self._texts = EncodedTexts(cache, f"{self.name}@{self.revision}")

    def encode(self, pairs: Sequence[Pair]) -> Vectors:
        return self._texts.encode([text_of(p) for p in pairs], self.dimension, self._encode)

    def _encode(self, texts: list[str]) -> Vectors:
        found = self._model.encode(texts, batch_size=self._batch, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


class EndpointEncoder:
    """``/v1/embeddings`` of an OpenAI-compatible server; batches side by side, 429 and 5xx waited out by the client library."""

    remembers = True

    def __init__(
        self,
        base_url: str,
        model: str,
        dimension: int,
        cache: Path | None = None,
        batch: int = 64,
        concurrency: int = 4,
        attempts: int = 5,
        timeout_s: float = 60.0,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        try:
            import openai
        except ImportError as e:
            raise MissingExtraError("openai", "endpoint") from e
        self._client = openai.OpenAI(
            base_url=base_url, api_key=os.environ.get(api_key_env) or "none", max_retries=attempts - 1, timeout=timeout_s
        )
        self._base_url, self._model, self._batch, self._concurrency = base_url, model, batch, concurrency
        self.name, self.revision, self.dimension = model, TEXT, dimension
        self._texts = EncodedTexts(cache, model)

    def encode(self, pairs: Sequence[Pair]) -> Vectors:
        """Raises ``EndpointError`` where the server is down, or gives vectors of another dimension."""
        return self._texts.encode([text_of(p) for p in pairs], self.dimension, self._encode)

    def _encode(self, texts: list[str]) -> Vectors:
        batches = [texts[i : i + self._batch] for i in range(0, len(texts), self._batch)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            return np.concatenate(list(pool.map(self._one, batches)))

    def _one(self, texts: list[str]) -> Vectors:
        import openai

        try:
            found = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
            rows = np.array([d.embedding for d in sorted(found.data, key=lambda d: d.index)], dtype=np.float32)
        except openai.OpenAIError as e:
            raise EndpointError(f"{self._base_url}, model {self._model}: no embeddings ({e}); nothing was stored, run it again") from e
        except (AttributeError, TypeError, ValueError) as e:
            raise EndpointError(f"{self._base_url}, model {self._model}: the reply holds no embeddings ({e})") from e
        if rows.shape != (len(texts), self.dimension):
            wanted = (len(texts), self.dimension)
            raise EndpointError(f"{self._base_url}, model {self._model}: embeddings of shape {rows.shape}, not {wanted}")
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _commit(module: object) -> str:
    """The hub's commit of a model, where it says so."""
    return str(getattr(getattr(getattr(module, "auto_model", None), "config", None), "_commit_hash", "") or "")


def _revision(folder: Path) -> str:
    """A hash of the weights: two folders of one name may hold different models."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]):
        with open(path, "rb") as f:
            digest.update(hashlib.file_digest(f, "blake2b").digest())
    return digest.hexdigest()
