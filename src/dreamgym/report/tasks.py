"""The page's part on tasks: how the population went over the iterations, and what was written, with its seeds."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from dreamgym.core.types import written_in
from dreamgym.report.chart import Chart, Series, whole_ticks

Json = dict[str, object]
EXAMPLES, FAMILIES = 8, 4
ORIGINS = {1: "written, children of logged ones", 2: "written, grandchildren"}
LARGEST = 0.25
"""The largest variance that rewards of 0 and 1 can have."""


def tasks_view(
    run: Path, metrics: Sequence[Mapping[str, object]], drafts: Sequence[Mapping[str, object]], dreaming: bool
) -> Json | None:
    """Charts, the population by origin, and drafts with what came of them; None where no iteration has finished, or with a sampler's
    state of an earlier version.

    ``drafts``: the lines of ``policy_run/tasks.jsonl``. ``dreaming``: rewards are the experience model's, and are called so.
    """
    state = run / "policy_run/checkpoint/state.json"
    if not metrics or not state.exists():
        return None
    saved = json.loads(state.read_text(encoding="utf-8"))
    sampler, written = saved["sampler"], {t["id"] for t in saved.get("written", [])}
    if not sampler.keys() >= {"value", "visits", "ended"}:
        return None
    logged = [t for t in sampler["value"] if t not in written]
    rows = [_row("logged", logged, sampler)]
    born = {str(t["id"]): len(t["lineage"]) for t in saved.get("written", [])}
    for depth in sorted(set(born.values())):
        names = sorted(t for t, n in born.items() if n == depth)
        ages = [len(metrics) - 1 - written_in(t) for t in names]
        rows.append(_row(ORIGINS.get(depth, f"written, {depth} removes from a logged one"), names, sampler) | {"age": fmean(ages)})
    verdicts = Counter(str(d["verdict"]).partition(":")[0] for d in drafts if "seeds" in d)
    kept = [d for d in drafts if d.get("verdict") == "kept" and "seeds" in d]
    step = max(1, len(kept) // EXAMPLES)
    return {
        "charts": [
            _chart(metrics, "dreamed: " if dreaming else ""),
            *_by_origin(metrics, "dreamed" if dreaming else "training"),
            *_ages(metrics),
        ],
        "families": _families(saved.get("written", []), sampler, drafts),
        "rows": rows,
        "verdicts": verdicts.most_common(),
        "drafts": sum(verdicts.values()),
        "examples": [_example(d, sampler) for d in kept[::step][:EXAMPLES]],
    }


def _row(origin: str, tasks: Sequence[str], sampler: Mapping[str, Mapping[str, object]]) -> Json:
    """What is known of the tasks of one origin."""
    ended = [sampler["ended"][t] for t in tasks]
    won, failed, invalid = (sum(e[i] for e in ended) for i in range(3))  # type: ignore[index]
    valued = [t for t in tasks if sampler["visits"][t]]
    return {
        "origin": origin,
        "tasks": len(tasks),
        "played": sum(any(e) for e in ended),  # type: ignore[arg-type]
        "value": _mean(float(str(sampler["value"][t])) for t in valued),
        "success": won / (won + failed) if won + failed else None,
        "all_won": sum(e[0] > 0 and not e[1] for e in ended),  # type: ignore[index]
        "all_failed": sum(e[1] > 0 and not e[0] for e in ended),  # type: ignore[index]
        "invalid": invalid / (won + failed + invalid) if won + failed + invalid else None,
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def _example(draft: Mapping[str, object], sampler: Mapping[str, Mapping[str, object]]) -> Json:
    """A task that was taken in: its seeds, and how it goes now; None where it was dropped since."""
    ended = sampler["ended"].get(str(draft["task"]))
    won, failed = (ended[0], ended[1]) if isinstance(ended, list) else (0, 0)
    name = str(draft["task"])
    own = sampler["value"].get(name) if sampler["visits"].get(name) else None  # until it is played its value is its parent's
    return {**draft, "value": own, "success": won / (won + failed) if won + failed else None}


def _families(
    written: Sequence[Mapping[str, object]], sampler: Mapping[str, Mapping[str, object]], drafts: Sequence[Mapping[str, object]]
) -> list[Json]:
    """The tasks with the most children: the instruction, and each child in the run with how it goes, in the order of their birth."""
    told = {str(d["task"]): str(d["seeds"][-1]) for d in drafts if d.get("task") and d.get("seeds")}  # type: ignore[index]
    children: dict[str, list[Json]] = {}
    for task in written:
        lineage = task["lineage"]
        assert isinstance(lineage, list)
        children.setdefault(str(lineage[-1]), []).append({"task": task["id"], "instruction": task["instruction"]})
    largest = sorted(children, key=lambda t: (-len(children[t]), t))[:FAMILIES]
    return [
        {"parent": told.get(str(children[t][0]["task"]), t), "children": [_example(c, sampler) for c in children[t]]}
        for t in largest
        if len(children[t]) > 1
    ]


def _chart(metrics: Sequence[Mapping[str, object]], said: str) -> Chart:
    """Shares of the tasks played so far, by how their groups ended, and of the draw that was written."""
    series = [
        Series(f"{said}mean value of tasks played, over 0.25", "s-dream", "triangle", _points(metrics, "mean_value", LARGEST), joined=True),
        Series(f"{said}tasks that were always won", "s-idle", "square", _points(metrics, "tasks_all_won", "tasks_played"), joined=True),
        Series(f"{said}tasks that always failed", "s-zero", "ring", _points(metrics, "tasks_all_failed", "tasks_played"), joined=True),
    ]
    if any("synthetic" in m for m in metrics):
        series.append(Series("share of written tasks in the draw", "s-train", "ring", _points(metrics, "synthetic", 1.0), joined=True))
    return _over_iterations("Which tasks were played", metrics, series)


def _by_origin(metrics: Sequence[Mapping[str, object]], said: str) -> list[Chart]:
    """How logged and written tasks went, and what they were worth; none where no written one was played."""
    if not any("won_written" in m for m in metrics):
        return []
    series = [
        Series(f"{said} success, {origin} tasks", style, marker, _points(metrics, f"won_{origin}"), joined=True)
        for origin, style, marker in (("logged", "s-dream", "triangle"), ("written", "s-train", "ring"))
    ]
    series += [
        Series(f"{said}: mean value over 0.25, {origin} tasks", style, "square", _points(metrics, f"value_{origin}", LARGEST), joined=True)
        for origin, style in (("logged", "s-idle"), ("written", "s-invalid"))
    ]
    return [_over_iterations("Logged and written tasks", metrics, series)]


def _ages(metrics: Sequence[Mapping[str, object]]) -> list[Chart]:
    """How old the written tasks are, and how many there are; none where there are none."""
    if not any("age_written" in m for m in metrics):
        return []
    n = max(float(str(m.get("tasks_synthetic", 0.0))) for m in metrics) or 1.0
    end = float(str(metrics[-1]["iteration"])) + 1
    series = [
        Series(f"mean age of written tasks, over {end:g} iterations", "s-train", "ring", _points(metrics, "age_written", end), joined=True),
        Series(f"written tasks, over {n:g}", "s-idle", "square", _points(metrics, "tasks_synthetic", n), joined=True),
    ]
    return [_over_iterations("Written tasks: how many, and how old", metrics, series)]


def _points(metrics: Sequence[Mapping[str, object]], key: str, over: str | float = 1.0) -> list[tuple[float, float]]:
    """A metric, over another one or a number, at the ends of the iterations that have it."""
    pairs = [(m, m.get(over) if isinstance(over, str) else over) for m in metrics if key in m]
    return [(float(str(m["iteration"])) + 1, float(str(m[key])) / float(str(n))) for m, n in pairs if n]


def _over_iterations(title: str, metrics: Sequence[Mapping[str, object]], series: list[Series]) -> Chart:
    end = float(str(metrics[-1]["iteration"])) + 1
    return Chart(title, "finished iterations", end, whole_ticks(end), series)
