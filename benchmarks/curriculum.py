"""``curriculum.json`` and its table: what choosing and writing tasks is worth in real success, on the pool of easy and hard games.

    python -m benchmarks.curriculum            # reads the cells of CURRICULUM_ROWS, writes benchmarks/results/curriculum.json
    python -m benchmarks.curriculum --make     # makes the cells that are missing first (days of one core)
    python -m benchmarks.curriculum --check    # exit 1 where what is written differs from them

It needs every cell of them and ``generator.json`` (``python -m benchmarks.generator``), and names what is missing. All arms have the same
warm starts, experience model, iterations and tasks per iteration; those that write tasks also play each new one twice before it counts,
which is in their dreamed transitions.
"""

import sys
from statistics import fmean

from benchmarks.cells import CURRICULUM_ROWS, HERE, POOL, SEEDS, all_levels, cell_path, measure_code
from benchmarks.tables import cells, markdown, publish, rows, spread
from dreamgym.core.files import read_json
from dreamgym.pipeline.stats import paired_interval

RESULTS = HERE / "results"
FULL, PLAIN = "lambda_25", "uniform"
"""Curriculum and generation, against neither."""
Json = dict[str, object]


def method_of(row: str) -> str:
    return f"grpo_dream+{row}"


def missing() -> list[str]:
    if POOL not in all_levels():
        return [f"logs of {POOL} and a base that has read them (python -m benchmarks.ship)"]
    absent = [f"{POOL} {method_of(r)} seed {s}" for r in CURRICULUM_ROWS for s in SEEDS if not cell_path(POOL, method_of(r), s).exists()]
    if not (RESULTS / "generator.json").exists():
        return [*absent, "generator.json"]
    made = read_json(RESULTS / "generator.json")["code"]
    return absent + ([] if made == measure_code("generator", POOL) else ["generator.json of the present code"])


def played(row: str, panel: str) -> list[dict[str, float]]:
    """Real success by game, for each seed."""
    return [rows(c, "real", panel) for c in cells(POOL, method_of(row))]


def kind_of(task: str) -> str:
    """Of a game of the pool: the name of its options."""
    return task.split("/")[1]


def by_kind(found: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Games apart by kind, each kind with one {game: success} per seed."""
    kinds = sorted({kind_of(t) for games in found for t in games})
    return {k: [{t: v for t, v in games.items() if kind_of(t) == k} for games in found] for k in kinds}


def ablation(row: str) -> Json:
    test, unseen, plain = played(row, "test"), played(row, "unseen"), played(PLAIN, "test")
    against = by_kind(plain)
    return {
        "success": [fmean(games.values()) for games in test],
        "unseen": [fmean(games.values()) for games in unseen],
        **{k: fmean(float(str(c[k])) for c in cells(POOL, method_of(row))) for k in ("updates", "dreamed_transitions", "wall_s")},
        "real_steps": {k: fmean(c["real_steps"][k] for c in cells(POOL, method_of(row))) for k in ("logs", "rl", "probe")},  # type: ignore[index]
        "by_difficulty": {k: fmean(fmean(g.values()) for g in found) for k, found in by_kind(test).items()},
        "paired_interval": paired_interval(test, plain, (row, PLAIN)),
        "paired_interval_unseen": paired_interval(unseen, played(PLAIN, "unseen"), (row, PLAIN)),
        "paired_by_difficulty": {k: paired_interval(found, against[k], (f"{row}, {k}", PLAIN)) for k, found in by_kind(test).items()},
    }


def table() -> str:
    """Markdown: the rows that have cells."""
    if POOL not in all_levels():
        return ""
    kinds = list(by_kind([g for r in CURRICULUM_ROWS for g in played(r, "test")]))
    lines = [["curriculum", "seeds", "**real success**, test", "unseen", *kinds]]
    lines.append(["---"] * len(lines[0]))
    for row in CURRICULUM_ROWS:
        if found := cells(POOL, method_of(row)):
            test, unseen = played(row, "test"), played(row, "unseen")
            shown = [spread([fmean(g.values()) for g in of]) for of in (test, unseen)]
            apart = by_kind(test)
            easy_to_hard = [f"{fmean(fmean(g.values()) for g in apart[k]):.2f}" for k in kinds]
            lines.append([row, ", ".join(str(c["seed"]) for c in found), *shown, *easy_to_hard])
    return markdown(lines)


def result() -> Json:
    rows_of = {row: ablation(row) for row in CURRICULUM_ROWS}
    generator = read_json(RESULTS / "generator.json")
    return {
        "level": POOL,
        "seeds": list(SEEDS),
        "n_test": len(played(PLAIN, "test")[0]),
        "ablation": rows_of,
        "paired_interval": rows_of[FULL]["paired_interval"],
        "generator": {k: generator[k] for k in ("well_formed", "solvable", "novel", "value_ratio", "n", "rejected")},
        "simulator_variance_share": generator["simulator_variance_share"],
    }


if __name__ == "__main__":
    if "--make" in sys.argv:
        from benchmarks.grid import make

        make((POOL, method_of(row), s) for s in SEEDS for row in CURRICULUM_ROWS)
    sys.exit(publish("curriculum", table, missing(), result, "--check" in sys.argv))
