"""The durable buffer measured: appends, exact and approximate search against a bare product, opening, kills.

    python -m benchmarks.replay_store            # one thread; writes benchmarks/results/replay-store.json

384 dimensions. Episodes are those of the shipped logs, renamed; vectors are clustered (task centre + episode + step noise) unless said.
Times are the best of several runs, ratios are within one run. *Bare*: blockwise product and ``argpartition`` on the same array.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.cells import HERE, commit
from dreamgym.core.files import read_episodes, write_json
from dreamgym.core.types import Episode
from dreamgym.pipeline.results import versions
from dreamgym.pipeline.stages import shipped
from dreamgym.replay.approximate import ApproximateIndex
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.search import BLOCK, Floats, Hidden, exact
from dreamgym.replay.store import EncoderIdentity, EpisodeStore

DIMENSION, K, QUERIES = 384, 5, 64
console = Console(highlight=False)


def clustered(n: int, seed: int = 0) -> Floats:
    """Unit vectors: 5000 task centres, sixteen steps an episode."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5000, DIMENSION), dtype=np.float32)
    out = np.empty((n, DIMENSION), np.float32)
    for start in range(0, n, 16_384):
        m = min(16_384, n - start)
        episodes = -(-m // 16)
        base = centres[rng.integers(5000, size=episodes)] + 0.5 * rng.standard_normal((episodes, DIMENSION), dtype=np.float32)
        rows = np.repeat(base, 16, axis=0)[:m] + 0.3 * rng.standard_normal((m, DIMENSION), dtype=np.float32)
        out[start : start + m] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def near(matrix: Floats, seed: int = 1) -> tuple[Floats, list[Hidden]]:
    """Queries near stored rows, each of which may not find its own episode."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(matrix), QUERIES, replace=False)
    asked = matrix[rows] + 0.3 / np.sqrt(DIMENSION) * rng.standard_normal((QUERIES, matrix.shape[1]), dtype=np.float32)
    own = [Hidden(slice(int(r) // 16 * 16, int(r) // 16 * 16 + 16)) for r in rows]
    return (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32), own


def best_s(work: Callable[[], object], times: int = 7) -> float:
    """Seconds of the fastest run."""

    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(times))


def renamed(pool: list[Episode], first: int, steps: int) -> list[Episode]:
    """Whole episodes of ``steps`` steps together, as a rollout would bring them."""
    out: list[Episode] = []
    while steps:
        e = pool[(first + len(out)) % len(pool)]
        keep = min(len(e.transitions), steps)
        out.append(e.model_copy(update={"id": f"b{first + len(out)}", "transitions": e.transitions[:keep], "branches": ()}))
        steps -= keep
    return out


def appends(folder: Path, total: int = 100_000, batch: int = 256) -> float:
    """Durable rows per second over the whole way to ``total``, vectors given, episodes made ready before the clock starts."""
    pool = [e for e in read_episodes(shipped("logs-easy.jsonl.xz")) if e.transitions]
    matrix, store = clustered(total), EpisodeStore(folder)
    encoder = store.add_encoder(EncoderIdentity("given", "1", DIMENSION, True), serving=True)
    spent, made = 0.0, 0
    for start in range(0, total - batch + 1, batch):
        episodes = renamed(pool, made, batch)
        made += len(episodes)
        began = time.perf_counter()
        store.append(episodes, {encoder: matrix[start : start + batch]}, f"batch {start}")
        spent += time.perf_counter() - began
    rows = len(store)
    store.close()
    return rows / spent


def exact_ratio(matrix: Floats) -> float:
    """Our filtered search against a bare blockwise product with top-k on the same array."""
    queries, own = near(matrix)
    visible = np.ones(len(matrix), np.bool_)
    visible[::3] = False  # one environment's share

    def bare() -> list[object]:
        return [np.argpartition(queries @ matrix[i : i + BLOCK].T, -K, axis=1)[:, -K:] for i in range(0, len(matrix), BLOCK)]

    return best_s(lambda: exact(matrix, queries, K, visible, own)) / best_s(bare)


def approximate(matrix: Floats) -> dict[str, float]:
    """Recall@5 against exact search on fresh queries, speed-up, memory as a multiple of the raw vectors (theirs included)."""
    began = time.perf_counter()
    index = ApproximateIndex.build(matrix, 0.98)
    build = time.perf_counter() - began
    found, wanted, times = [], [], []
    for seed in range(2, 6):
        queries, own = near(matrix, seed)
        wanted.append(exact(matrix, queries, K, None, own)[1])
        found.append(index.search(matrix, queries, K, None, own)[1])
        slow = best_s(lambda q=queries, o=own: exact(matrix, q, K, None, o), 2)  # type: ignore[misc]
        times.append(slow / best_s(lambda q=queries, o=own: index.search(matrix, q, K, None, o), 5))  # type: ignore[misc]
    import faiss

    held = len(faiss.serialize_index(index._index))
    return {
        "recall": float(np.mean(np.concatenate(found) >= np.concatenate(wanted) - 1e-5)),
        "speedup": float(np.median(times)),
        "memory_ratio": (held + matrix.nbytes) / matrix.nbytes,
        "build_s": build,
        "probes": index.probes,
        "rows": len(matrix),
    }


def open_million(folder: Path) -> float:
    """Seconds until a store of a million steps answers its first query, from vectors that are there."""
    pool = [e for e in read_episodes(shipped("logs-easy.jsonl.xz")) if e.transitions]
    store = EpisodeStore(folder)
    encoder = store.add_encoder(EncoderIdentity("given", "1", DIMENSION, True), serving=True)
    made = 0
    for start in range(0, 1_000_000, 10_000):
        episodes = renamed(pool, made, 10_000)
        made += len(episodes)
        store.append(episodes, {encoder: clustered(10_000, start)}, f"batch {start}")
    store.close()

    def opened() -> None:
        again = EpisodeStore(folder, "ro")
        assert len(again) == 1_000_000
        assert again.matrix(encoder)[999_999].any()
        again.close()

    return best_s(opened, 3)


def hashing_vectors(n: int = 100_000) -> Floats:
    """Real text: the shipped logs' steps by the hashing encoder, 384 dimensions."""
    logs = [e for level in ("easy", "standard") for e in read_episodes(shipped(f"logs-{level}.jsonl.xz"))]
    steps = [(t.state, t.action) for e in logs for t in e.steps]
    chosen = np.random.default_rng(0).permutation(len(steps))[:n]
    return HashingEncoder(DIMENSION).encode([steps[i] for i in np.sort(chosen)])


def main(kills: int = 200) -> None:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        result["append_per_s"] = appends(Path(scratch) / "appends")
        console.print(f"durable rows per second: {result['append_per_s']:,.0f}")
        result["exact_ratio"] = {name: exact_ratio(clustered(n)) for name, n in (("10k", 10_000), ("100k", 100_000))}
        console.print(f"exact against bare: {result['exact_ratio']}")
        result["ann_100k_hashing"] = approximate(hashing_vectors())
        console.print(f"100 k real hashing vectors: {result['ann_100k_hashing']}")
        result["ann_1m"] = approximate(clustered(1_000_000))
        console.print(f"a million clustered vectors: {result['ann_1m']}")
        result["open_1m_s"] = open_million(Path(scratch) / "million")
        console.print(f"a million steps open in {result['open_1m_s']:.2f} s")
        sys.path.insert(0, str(HERE.parent / "tests"))
        from test_store import kill_loop

        batches, wrong = kill_loop(Path(scratch) / "kills", kills)
        result |= {"kills": kills, "batches_between": batches, "problems": wrong}
        result |= {kind: sum(kind in w for w in wrong) for kind in ("lost", "torn")}
        console.print(f"{kills} kills, {batches} batches: {len(wrong)} problems {wrong[:3]}")
    write_json(HERE / "results" / "replay-store.json", {**result, "commit": commit(), "versions": versions()})


if __name__ == "__main__":
    main()
