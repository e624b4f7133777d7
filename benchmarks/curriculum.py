"""``curriculum.json`` and its table: what choosing and writing tasks is worth in real success, on the pool of easy and hard games.

    python -m benchmarks.curriculum            # reads the cells of CURRICULUM_ROWS, writes benchmarks/results/curriculum.json
    python -m benchmarks.curriculum --make     # makes the cells that are missing first (days of one core)
    python -m benchmarks.curriculum --check    # exit 1 where what is written differs from them

It needs every cell of them and ``generator.json`` (``python -m benchmarks.generator``), and names what is missing. All arms have the same
warm starts, experience model, iterations and tasks per iteration; those that write tasks also play each new one twice before it counts,
which is in their dreamed transitions. Arms are paired by the seeds that both have (``SIX_SEEDS``: six, the others
three); ``seeds`` at the top of the file are those of all arms, each arm has its own.
"""

import sys
from statistics import fmean

from benchmarks.cells import CURRICULUM_ROWS, HERE, LATER_SEEDS, POOL, SEEDS, all_levels, cell_path, measure_code, seeds_of
from benchmarks.tables import Cell, cells, in_common, markdown, publish, rows, spread
from dreamgym.core.files import read_json
from dreamgym.pipeline.stats import paired_interval

RESULTS = HERE / "results"
FULL, PLAIN, START = "lambda_25", "uniform", "sft"
"""Curriculum and generation, against neither; and what all begin from."""
KINDS = {
    "easy": "1 food",
    "recipe1_go6": "1, six rooms",
    "standard": "2",
    "recipe2_go6": "2, six rooms",
    "recipe3": "3",
    "hard": "3, six rooms",
}
"""Of the pool's games, in the words of the table."""
Json = dict[str, object]


def method_of(row: str) -> str:
    return f"grpo_dream+{row}"


def arms() -> list[str]:
    """The methods of the rows."""
    return [method_of(row) for row in CURRICULUM_ROWS]


def missing() -> list[str]:
    if POOL not in all_levels():
        return [f"logs of {POOL} and a base that has read them (python -m benchmarks.ship)"]
    absent = [f"{POOL} {m} seed {s}" for m in (START, *arms()) for s in seeds_of(POOL, m) if not cell_path(POOL, m, s).exists()]
    if not (RESULTS / "generator.json").exists():
        return [*absent, "generator.json"]
    made = read_json(RESULTS / "generator.json")
    current = (made["code"], made["seeds"]) == (measure_code("generator", POOL), list(SEEDS))
    return absent + ([] if current else ["generator.json of the present code and all seeds"])


def both(row: str, panel: str) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The row's and uniform drawing's games, of the seeds that both have."""
    return in_common(POOL, (method_of(row), method_of(PLAIN)), panel)


def kind_of(task: str) -> str:
    """Of a game of the pool: the name of its options."""
    return task.split("/")[1]


def by_kind(found: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Games apart by kind, each kind with one {game: success} per seed."""
    kinds = sorted({kind_of(t) for games in found for t in games})
    return {k: [{t: v for t, v in games.items() if kind_of(t) == k} for games in found] for k in kinds}


def ablation(row: str) -> Json:
    found = cells(POOL, method_of(row))
    test, unseen = ([rows(c, "real", panel) for c in found] for panel in ("test", "unseen"))
    return {
        "seeds": [c["seed"] for c in found],
        "success": [fmean(games.values()) for games in test],
        "unseen": [fmean(games.values()) for games in unseen],
        **{k: fmean(float(str(c[k])) for c in found) for k in ("updates", "dreamed_transitions", "wall_s")},
        "real_steps": real_steps(found),
        "by_difficulty": {k: fmean(fmean(g.values()) for g in games) for k, games in by_kind(test).items()},
        **({} if row == PLAIN else against_plain(row)),
    }


def against_plain(row: str) -> Json:
    """Paired with uniform drawing."""
    ours, plain = both(row, "test")
    apart, theirs = by_kind(ours), by_kind(plain)
    return {
        "paired_interval": paired_interval(ours, plain, (row, PLAIN)),
        "paired_interval_unseen": paired_interval(*both(row, "unseen"), (row, PLAIN)),
        "paired_by_difficulty": {k: paired_interval(found, theirs[k], (f"{row}, {k}", PLAIN)) for k, found in apart.items()},
    }


def real_steps(found: list[Cell]) -> dict[str, float]:
    """Means over seeds."""
    return {k: fmean(c["real_steps"][k] for c in found) for k in ("logs", "rl", "probe")}  # type: ignore[index]


def table() -> str:
    """Markdown: the start and the rows that have cells, those of all six seeds once more, and what sets rows apart from uniform drawing."""
    if POOL not in all_levels():
        return ""
    methods = {START: START, **{row: method_of(row) for row in CURRICULUM_ROWS}}
    named, kinds = list(KINDS.values()), list(KINDS)
    costs = ["real steps: logs / RL / probe", "dreamed transitions", "updates", "min"]
    head = ["curriculum", "seeds", "**real success**, 150 test games", "54 unseen", *named, *costs]
    lines = [head, ["---"] * len(head)]
    for seeds in (SEEDS, (*SEEDS, *LATER_SEEDS)):
        for row, method in methods.items():
            of = [c for c in cells(POOL, method) if c["seed"] in seeds]
            if not of or (seeds != SEEDS and seeds_of(POOL, method) == SEEDS):
                continue
            shown = [spread([fmean(rows(c, "real", panel).values()) for c in of]) for panel in ("test", "unseen")]
            apart = by_kind([rows(c, "real") for c in of])
            by_difficulty = [f"{fmean(fmean(g.values()) for g in apart[k]):.2f}" for k in kinds]
            cost = {k: fmean(float(str(c[k])) for c in of) for k in ("dreamed_transitions", "updates", "wall_s")}
            steps = " / ".join(f"{n:,.0f}" for n in real_steps(of).values())
            figures = [steps, f"{cost['dreamed_transitions']:,.0f}", f"{cost['updates']:,.0f}", f"{cost['wall_s'] / 60:.0f}"]
            lines.append([f"`{row}`", ", ".join(str(c["seed"]) for c in of), *shown, *by_difficulty, *figures])
    return "\n\n".join(filter(None, (markdown(lines), differences())))


def differences() -> str:
    """Markdown: rows that have all of their seeds, against uniform drawing."""
    lines = [["first - second", "seeds", "panel", "mean", "95 % interval over seeds and games"], ["---"] * 5]
    whole = [row for row in CURRICULUM_ROWS if len(cells(POOL, method_of(row))) == len(seeds_of(POOL, method_of(row)))]
    for row in whole if PLAIN in whole else ():
        for panel in ("test", "unseen") if row != PLAIN else ():
            pair = paired_interval(*both(row, panel), (row, PLAIN))
            figures = [f"{pair['mean']:+.3f}", f"{pair['low']:+.3f} .. {pair['high']:+.3f}"]
            lines.append([f"`{row} - {PLAIN}`", str(pair["n_seeds"]), panel, *figures])
    return markdown(lines) if len(lines) > 2 else ""


def result() -> Json:
    rows_of = {row: ablation(row) for row in CURRICULUM_ROWS}
    generator = read_json(RESULTS / "generator.json")
    return {
        "level": POOL,
        "seeds": list(SEEDS),
        "n_test": len(rows(cells(POOL, method_of(PLAIN))[0], "real")),
        "ablation": rows_of,
        "paired_interval": rows_of[FULL]["paired_interval"],
        "generator": {k: generator[k] for k in ("well_formed", "solvable", "novel", "value_ratio", "n", "rejected")},
        "simulator_variance_share": generator["simulator_variance_share"],
    }


if __name__ == "__main__":
    if "--make" in sys.argv:
        from benchmarks.grid import make

        make((POOL, m, s) for m in (START, *arms()) for s in seeds_of(POOL, m))
    sys.exit(publish("curriculum", table, missing(), result, "--check" in sys.argv))
