"""``rl.json`` and its table: GRPO and PPO in the dream, for real, and for real after the dream, with the baselines beside them.

    python -m benchmarks.rl            # reads the cells of RL_METHODS on RL_LEVEL, writes benchmarks/results/rl.json
    python -m benchmarks.rl --make     # makes the cells that are missing first (days of one core)
    python -m benchmarks.rl --check    # exit 1 where what is written differs from them

It needs every cell of them and names what is missing.
"""

import sys
from collections.abc import Sequence
from itertools import product
from statistics import fmean

from benchmarks.cells import (
    ALGORITHMS,
    BASELINES,
    BUDGETED,
    EARLY_ROWS,
    LATER_SEEDS,
    RL_LEVEL,
    RL_METHODS,
    SEEDS,
    all_levels,
    cell_path,
    seeds_of,
)
from benchmarks.tables import Cell, cells, in_common, markdown, publish, rows, spread
from dreamgym.pipeline.play import LIVE
from dreamgym.pipeline.stats import paired_interval

LATENCIES = (0.0, 0.1, 1.0)
"""Seconds that one real step is said to cost, beside what it took here."""
GOAL = 0.9
"""Share of the real arm's best probe success that counts as reached."""
RISE = 0.02
"""A real arm whose probe success rose by less in its last quarter has had its full budget."""
Json = dict[str, object]


def missing() -> list[str]:
    if RL_LEVEL not in all_levels():
        return [f"logs of {RL_LEVEL} and a base that has read them (python -m benchmarks.ship)"]
    return [f"{RL_LEVEL} {m} seed {s}" for m in RL_METHODS for s in seeds_of(RL_LEVEL, m) if not cell_path(RL_LEVEL, m, s).exists()]


def row(method: str, seeds: Sequence[int] = (*SEEDS, *LATER_SEEDS)) -> Json:
    """Of the cells of these seeds. ``wall_s``: of this arm's own training and of the models that it shares with other arms, their mean."""
    found = [c for c in cells(RL_LEVEL, method) if c["seed"] in seeds]
    return {
        "seeds": [c["seed"] for c in found],
        "success": [fmean(rows(c, "real").values()) for c in found],
        "real_transitions": {k: fmean(c["real_steps"][k] for c in found) for k in ("logs", "rl", "probe")},  # type: ignore[index]
        "updates": fmean(float(str(c["updates"])) for c in found),
        "wall_s": fmean(float(str(c["wall_s"])) * (method not in shared(c)) + sum(shared(c).values()) for c in found),
    }


def shared(cell: Cell) -> dict[str, float]:
    """Seconds of the warm start and, where there is one, of the experience model."""
    found = cell["shared_wall_s"]
    assert isinstance(found, dict)
    return found


def curve(cell: Cell) -> list[dict[str, float]]:
    found = cell["curve"]
    assert isinstance(found, list)
    return found


def best(cell: Cell) -> float:
    """The probe success by which its checkpoint was chosen."""
    return max(p["success"] for p in curve(cell))


def reached(cell: Cell, goal: float) -> dict[str, float] | None:
    """The first probe of a run that is at the goal."""
    return next((p for p in curve(cell) if p["success"] >= goal), None)


def data_to_goal(algorithm: str) -> Json:
    """Real transitions of RL, per seed, until the probes reach ``GOAL`` of the real arm's best; None where they never do.

    After the dream it takes none where the dream's policy is there already. A real arm's seed that never gets there counts with all
    the steps that it took: the ratio is then an upper bound. There is none where a seed after the dream never does. Probes' own steps,
    which every arm takes, are in ``probe_steps``.
    """
    real, dream, after = (cells(RL_LEVEL, f"{algorithm}_{how}") for how in ("real", "dream", "s2r"))
    goal = GOAL * fmean(map(best, real))
    in_reality = [_steps(reached(c, goal)) for c in real]
    in_dream = [0.0 if reached(c, goal) else None for c in dream]
    s2r = [0.0 if reached(d, goal) else _steps(reached(c, goal)) for d, c in zip(dream, after, strict=True)]
    at_least = fmean(n if n is not None else curve(c)[-1]["rl_steps"] for n, c in zip(in_reality, real, strict=True))
    took = [n for n in s2r if n is not None]
    ratio = fmean(took) / at_least if len(took) == len(s2r) else None
    probes = {name: [curve(c)[-1]["probe_steps"] for c in arm] for name, arm in (("real", real), ("dream", dream), ("s2r", after))}
    return {"goal": goal, "real": in_reality, "dream": in_dream, "s2r": s2r, "ratio_s2r": ratio, "probe_steps": probes}


def full_budget(algorithm: str) -> Json:
    """Whether the real arm was given all that it can use: its probe success rose by less than 2 points in the last quarter."""
    rises = []
    for cell in cells(RL_LEVEL, f"{algorithm}_real"):
        probes = curve(cell)
        end = probes[-1]["iteration"]
        rises.append(probes[-1]["success"] - [p for p in probes if p["iteration"] <= 0.75 * end][-1]["success"])
    return {"rise_in_last_quarter": rises, "full": fmean(rises) < RISE}


def _steps(probe: dict[str, float] | None) -> float | None:
    return None if probe is None else probe["rl_steps"]


def time_to_equal(algorithm: str) -> Json:
    """Seconds, per seed, until the probes reach the same goal, where a real step costs so much more; probes' steps cost as much.

    Those of the dream have the experience model's training in them. ``serial``: real steps one after another; ``at_once``: ``LIVE``
    episodes side by side, all always waiting, which is the least that it can be. None where they never do; a real arm's seed then
    counts with all the time that it took, and the ratio is an upper bound.
    """
    real, dream = (cells(RL_LEVEL, f"{algorithm}_{how}") for how in ("real", "dream"))
    goal = GOAL * fmean(map(best, real))
    found: Json = {"goal": goal}
    for latency in LATENCIES:
        found[f"{latency:g}"] = {
            way: _compared([(c, goal) for c in dream], [(c, goal) for c in real], waited)
            for way, waited in (("serial", latency), ("at_once", latency / LIVE))
        }
    return found


def _compared(dream: Sequence[tuple[Cell, float]], real: Sequence[tuple[Cell, float]], waited: float) -> Json:
    ours, theirs = ([_seconds(c, reached(c, goal), waited) for c, goal in arm] for arm in (dream, real))
    least = fmean(float(str(_seconds(c, reached(c, goal) or curve(c)[-1], waited))) for c, goal in real)
    took = [s for s in ours if s is not None]
    return {"dream": ours, "real": theirs, "ratio": fmean(took) / least if len(took) == len(ours) else None}


def _seconds(cell: Cell, at: dict[str, float] | None, waited: float) -> float | None:
    return None if at is None else sum(shared(cell).values()) + at["wall_s"] + waited * (at["rl_steps"] + at["probe_steps"])


def pairs() -> dict[str, Json]:
    """Differences of arms, named ``first - second``; of those that have three seeds in common."""
    against = (("dream", "real"), ("s2r", "real"), ("s2r", BUDGETED), ("s2r", "dream"))
    wanted = [(f"{a}_{x}", f"{a}_{y}") for a in ALGORITHMS for x, y in against]
    wanted += [(f"{a}_dream", start) for a in ALGORITHMS for start in ("sft_all", "sft")]
    wanted += [(baseline, "sft") for baseline in BASELINES]
    wanted += [(f"ppo_dream+{name}", other) for name, how in EARLY_ROWS.items() for other in (how["start"], "ppo_dream", "ppo_real")]
    found = {}
    for first, second in wanted:
        ours, theirs = in_common(RL_LEVEL, (first, second))
        if len(ours) >= len(SEEDS):
            found[f"{first} - {second}"] = paired_interval(ours, theirs, (first, second))
    return found


def table() -> str:
    """Markdown: the arms that have cells, and the differences of those whose seeds are all there."""
    if RL_LEVEL not in all_levels():
        return ""
    head = ["method", "seeds", "**real success**, 150 test games", "real steps: logs / RL / probe", "updates", "min, with shared models"]
    lines = [head, ["---"] * len(head)]
    for method, seeds in product(RL_METHODS, (SEEDS, LATER_SEEDS)):
        if any(c["seed"] in seeds for c in cells(RL_LEVEL, method)):
            r = row(method, seeds)
            steps, success, these = r["real_transitions"], r["success"], r["seeds"]
            assert isinstance(steps, dict)
            assert isinstance(success, list)
            assert isinstance(these, list)
            shown = [spread(success), " / ".join(f"{steps[k]:,.0f}" for k in ("logs", "rl", "probe"))]
            figures = [f"{float(str(r['updates'])):,.0f}", f"{float(str(r['wall_s'])) / 60:.0f}"]
            lines.append([f"`{method}`", ", ".join(map(str, these)), *shown, *figures])
    return f"{markdown(lines)}\n\n{differences()}"


def differences() -> str:
    """Markdown: ``pairs`` of the arms that have all seeds."""
    lines = [["first - second", "mean", "95 % interval over seeds and games"], ["---"] * 3]
    for name, pair in pairs().items():
        lines.append([f"`{name}`", f"{pair['mean']:+.3f}", f"{pair['low']:+.3f} .. {pair['high']:+.3f}"])
    return markdown(lines)


def result() -> Json:
    return {
        "level": RL_LEVEL,
        "n_test": len(rows(cells(RL_LEVEL, "grpo_dream")[0], "real")),
        "seeds": [*SEEDS, *LATER_SEEDS],
        "table": {m: row(m) for m in RL_METHODS},
        "paired": pairs(),
        "data_to_90": {a: data_to_goal(a) for a in ALGORITHMS},
        "time_to_equal": {a: time_to_equal(a) for a in ALGORITHMS},
        "full_budget": {a: full_budget(a) for a in ALGORITHMS},
    }


if __name__ == "__main__":
    if "--make" in sys.argv:
        from benchmarks.grid import make

        make((RL_LEVEL, m, s) for m in RL_METHODS for s in seeds_of(RL_LEVEL, m))
    sys.exit(publish("rl", table, missing(), result, "--check" in sys.argv))
