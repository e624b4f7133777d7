"""``rl.json`` and its table: GRPO and PPO in the dream, for real, and for real after the dream, with the baselines beside them.

    python -m benchmarks.rl            # reads the cells of RL_METHODS on RL_LEVEL, writes benchmarks/results/rl.json
    python -m benchmarks.rl --check    # exit 1 where what is written differs from them

It needs every cell of them (``python -m benchmarks.grid hard METHOD 0 1 2``) and names what is missing.
"""

import sys
from statistics import fmean

from benchmarks.cells import ALGORITHMS, BUDGETED, RL_LEVEL, RL_METHODS, SEEDS, all_levels, cell_path
from benchmarks.tables import Cell, cells, markdown, publish, rates, rows, spread
from dreamgym.pipeline.stats import paired_interval

LATENCIES = (0.0, 0.1, 1.0)
"""Seconds that one real step is said to cost, beside what it took here."""
GOAL = 0.9
"""Share of the real arm's best probe success that counts as reached."""
Json = dict[str, object]


def missing() -> list[str]:
    if RL_LEVEL not in all_levels():
        return [f"logs of {RL_LEVEL} and a base that has read them (python -m benchmarks.ship)"]
    return [f"{RL_LEVEL} {m} seed {s}" for m in RL_METHODS for s in SEEDS if not cell_path(RL_LEVEL, m, s).exists()]


def row(method: str) -> Json:
    """``wall_s``: of this arm's own training and of the models that it shares with other arms, mean over seeds."""
    found = cells(RL_LEVEL, method)
    return {
        "success": rates(RL_LEVEL, method),
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
    """Real transitions of RL, per seed, until the probes reach ``GOAL`` of the real arm's best; None where they never do,
    and no ratio then.

    After the dream it takes none where the dream's policy is there already.
    """
    real, dream, after = (cells(RL_LEVEL, f"{algorithm}_{how}") for how in ("real", "dream", "s2r"))
    goal = GOAL * fmean(map(best, real))
    in_reality = [_steps(reached(c, goal)) for c in real]
    in_dream = [0.0 if reached(c, goal) else None for c in dream]
    s2r = [0.0 if reached(d, goal) else _steps(reached(c, goal)) for d, c in zip(dream, after, strict=True)]
    means = [fmean(n for n in arm if n is not None) for arm in (s2r, in_reality) if None not in arm]
    ratio = means[0] / means[1] if len(means) == 2 else None
    return {"goal": goal, "real": in_reality, "dream": in_dream, "s2r": s2r, "ratio_s2r": ratio}


def _steps(probe: dict[str, float] | None) -> float | None:
    return None if probe is None else probe["rl_steps"]


def time_to_equal(algorithm: str) -> Json:
    """Seconds, per seed, until the probes reach the same goal, where a real step costs so much more; probes' steps cost as much.

    Those of the dream have the experience model's training in them. None where they never do.
    """
    real, dream = (cells(RL_LEVEL, f"{algorithm}_{how}") for how in ("real", "dream"))
    goal = GOAL * fmean(map(best, real))
    found: Json = {"goal": goal}
    for latency in LATENCIES:
        seconds = {name: [_seconds(c, goal, latency) for c in arm] for name, arm in (("real", real), ("dream", dream))}
        whole = {name: fmean(s for s in of if s is not None) for name, of in seconds.items() if None not in of}
        ratio = whole["dream"] / whole["real"] if len(whole) == 2 else None
        found[f"{latency:g}"] = {**seconds, "ratio": ratio}
    return found


def _seconds(cell: Cell, goal: float, latency: float) -> float | None:
    at = reached(cell, goal)
    return None if at is None else sum(shared(cell).values()) + at["wall_s"] + latency * (at["rl_steps"] + at["probe_steps"])


def pairs() -> dict[str, Json]:
    """Differences of arms, named ``first - second``."""
    found = {}
    for a in ALGORITHMS:
        against = (("dream", "real"), ("s2r", "real"), ("s2r", BUDGETED), ("s2r", "dream"))
        for first, second in [*((f"{a}_{x}", f"{a}_{y}") for x, y in against), (f"{a}_dream", "sft_all"), (f"{a}_dream", "sft")]:
            ours, theirs = ([rows(c, "real") for c in cells(RL_LEVEL, m)] for m in (first, second))
            found[f"{first} - {second}"] = paired_interval(ours, theirs, (first, second))
    return found


def table() -> str:
    """Markdown: the arms that have cells."""
    if RL_LEVEL not in all_levels():
        return ""
    head = ["method", "seeds", "**real success**, 150 test games", "real steps: logs / RL / probe", "updates", "min, with shared models"]
    lines = [head, ["---"] * len(head)]
    for method in RL_METHODS:
        if found := cells(RL_LEVEL, method):
            r = row(method)
            steps = r["real_transitions"]
            assert isinstance(steps, dict)
            shown = [spread(rates(RL_LEVEL, method)), " / ".join(f"{steps[k]:,.0f}" for k in ("logs", "rl", "probe"))]
            figures = [f"{float(str(r['updates'])):,.0f}", f"{float(str(r['wall_s'])) / 60:.0f}"]
            lines.append([f"`{method}`", ", ".join(str(c["seed"]) for c in found), *shown, *figures])
    return markdown(lines)


def result() -> Json:
    return {
        "level": RL_LEVEL,
        "n_test": len(rows(cells(RL_LEVEL, "grpo_dream")[0], "real")),
        "seeds": list(SEEDS),
        "table": {m: row(m) for m in RL_METHODS},
        "paired": pairs(),
        "data_to_90": {a: data_to_goal(a) for a in ALGORITHMS},
        "time_to_equal": {a: time_to_equal(a) for a in ALGORITHMS},
    }


if __name__ == "__main__":
    sys.exit(publish("rl", table, missing(), result, "--check" in sys.argv))
