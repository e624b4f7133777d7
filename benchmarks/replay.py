"""``replay.json``: the durable buffer's speed and safety, changing its encoder, and whether what comes into it matters.

    python -m benchmarks.replay            # reads result files and cells, writes benchmarks/results/replay.json
    python -m benchmarks.replay --check    # exit 1 where what is written differs from them

It needs the files of ``benchmarks.replay_store`` and ``benchmarks.replay_backfill``, and the cells of ``ARMS``
(``python -m benchmarks.grid easy METHOD 0 1 2``); it names what is missing.
"""

import sys

from benchmarks.cells import HERE, SEEDS, cell_path
from benchmarks.tables import audit_of, cells, markdown, publish, rates, rows, spread
from dreamgym.core.files import read_json
from dreamgym.pipeline.stats import paired_interval

RESULTS, LEVEL = HERE / "results", "easy"
ARMS = {
    "none": "grpo_dream+no_retrieval",
    "real_frozen": "grpo_dream+real_frozen",
    "store_all": "grpo_dream",
    "filtered": "grpo_dream+filtered",
}
"""What the experience model retrieves from: nothing, the logs, the logs and all that is dreamed, or what it was sure of."""
SPEED = ("append_per_s", "exact_ratio", "ann_1m", "open_1m_s", "kills", "lost", "torn")


def missing() -> list[str]:
    absent = [f"{LEVEL} {m} seed {s}" for m in ARMS.values() for s in SEEDS if not cell_path(LEVEL, m, s).exists()]
    return absent + [n for n in ("replay-store.json", "replay-backfill.json") if not (RESULTS / n).exists()]


def arm(name: str) -> dict[str, object]:
    ours, theirs = ([rows(c, "real") for c in cells(LEVEL, m)] for m in (ARMS[name], ARMS["store_all"]))
    return {
        "level": LEVEL,
        "real_success": rates(LEVEL, ARMS[name]),
        "dream_success": rates(LEVEL, ARMS[name], "dream"),
        "audit": audit_of(LEVEL, ARMS[name]),
        "paired_interval": paired_interval(ours, theirs, (name, "store_all")),
    }


def table() -> str:
    """Markdown: the arms that have cells."""
    lines = [["the buffer holds", "seeds", "real success", "dreamed (no result)", "dream-win precision"], ["---"] * 5]
    for name, method in ARMS.items():
        if found := cells(LEVEL, method):
            seeds, sure = ", ".join(str(c["seed"]) for c in found), audit_of(LEVEL, method).get("dream_win_precision")
            figures = [spread(rates(LEVEL, method)), spread(rates(LEVEL, method, "dream")), "-" if sure is None else f"{sure:.3f}"]
            lines.append([name, seeds, *figures])
    return markdown(lines)


def result() -> dict[str, object]:
    store, backfill = (read_json(RESULTS / f"replay-{name}.json") for name in ("store", "backfill"))
    found = {k: store[k] for k in SPEED} | {k: backfill[k] for k in ("backfill", "backfill_gain")}
    return found | {"buffer_arms": {name: arm(name) for name in ARMS}}


if __name__ == "__main__":
    sys.exit(publish("replay", table, missing(), result, "--check" in sys.argv))
