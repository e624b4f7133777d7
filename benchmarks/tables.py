"""Tables from cells: ``make results`` writes them and ``slice.json``; ``make check-results`` fails where one is not current.

    python -m benchmarks.tables            # read the cells, write benchmarks/results/slice.json and the tables of the pages
    python -m benchmarks.tables --check    # exit 1 where a cell is stale, or slice.json or a page's table differs from its cells

``slice.json`` is written only when every headline cell is there; the tables show what exists. Those of README.md and of
docs/results.md stand between ``<!-- cells -->`` and ``<!-- end of cells -->``, and the like.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from benchmarks.cells import CELLS, HERE, LEVELS, METHODS, SEEDS, all_levels, cell_path, commit, methods, seeds_of
from dreamgym.core.files import read_json, write_json
from dreamgym.pipeline.results import AUDIT_KEYS, versions
from dreamgym.pipeline.stages import shipped
from dreamgym.pipeline.stats import paired_interval

RESULTS = HERE / "results"
QUICKSTART = RESULTS / "quickstart.json"
ROWS = {
    "base": "`base`: the language model that all arms start from",
    "sft": "`sft`: warm start on the limited demonstrations",
    "sft_all": "`sft_all`: every logged success",
    "grpo_real": "`grpo_real`: GRPO in the real environment (control)",
    "grpo_dream": "**`grpo_dream`**: GRPO in the dream",
    "grpo_dream+no_reasoning": "`grpo_dream`, experience model without reasoning",
    "grpo_dream+no_retrieval": "`grpo_dream`, without retrieval",
    "grpo_dream+no_sheet": "`grpo_dream`, without world sheet",
}
"""Rows of the first tables, those that have cells."""
console = Console(highlight=False)
Cell = dict[str, object]


def cells(level: str, method: str) -> list[Cell]:
    """The current cells of a method, by seed."""
    return [read_json(p) for p in (cell_path(level, method, s) for s in seeds_of(level, method)) if p.exists()]


def rows(cell: Cell, source: str, panel: str = "test") -> dict[str, float]:
    key = "success" if source == "real" else "dream_success"
    found = cell["rows"]
    assert isinstance(found, list)
    return {r["task"]: float(r[key]) for r in found if r["source"] == source and r["panel"] == panel and r[key] is not None}


def in_common(level: str, methods: tuple[str, str], panel: str = "test") -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Two methods' real success by game, of the seeds that both have, in the same order; for ``paired_interval``."""
    ours, theirs = ({c["seed"]: rows(c, "real", panel) for c in cells(level, m)} for m in methods)
    seeds = [s for s in ours if s in theirs]
    return [ours[s] for s in seeds], [theirs[s] for s in seeds]


def rates(level: str, method: str, source: str = "real") -> list[float]:
    return [fmean(rows(c, source).values()) for c in cells(level, method)]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table: one line per row, the first its head."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float]) -> str:
    return "-" if not values else f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def audit_of(level: str, method: str) -> dict[str, float]:
    """Each measure, mean over seeds."""
    audits = [c["audit"] for c in cells(level, method)]
    known = {k: [float(a[k]) for a in audits if a.get(k) is not None] for k in AUDIT_KEYS}  # type: ignore[index]
    return {k: fmean(values) for k, values in known.items() if values}


def publish(
    name: str, table: Callable[[], str], absent: Sequence[str], result: Callable[[], dict[str, object]], checking: bool = False
) -> int:
    """What a module of results ends with: its table shown, and ``result`` written to ``name``.json once nothing is ``absent``.

    ``checking``: nothing is written; 1 where a written file differs from what its cells say now.
    """
    path = RESULTS / f"{name}.json"
    lacks = f"{len(absent)} cells and files are missing: {', '.join(absent[:6])}{' ...' if len(absent) > 6 else ''}"
    if checking:
        if not path.exists():
            console.print(f"{path.name}: not written yet")
            return 0
        stays = not absent and _figures(read_json(path)) == _figures(result())
        says = "current" if stays else lacks if absent else "differs from its cells; run its command again"
        console.print(f"{path.name}: {says}")
        return int(not stays)
    if shown := table():
        console.print(f"{shown}\n", soft_wrap=True, markup=False)
    if absent:
        console.print(f"{path.name} is not written: {lacks}")
        return 1
    write_json(path, {**result(), "commit": commit(), "versions": versions()})
    console.print(f"written: {path}")
    return 0


def _figures(found: Mapping[str, object]) -> str:
    """A result without what names the process that wrote it."""
    return json.dumps({k: v for k, v in found.items() if k not in ("commit", "versions")}, sort_keys=True)


def level_result(level: str) -> dict[str, object]:
    """One level of ``slice.json``."""
    after, before = cells(level, "grpo_dream"), cells(level, "sft")
    control = cells(level, "grpo_real")
    steps = {k: fmean(c["real_steps"][k] for c in after) for k in ("logs", "rl", "probe")}  # type: ignore[index]
    return {
        "seeds": [c["seed"] for c in after],
        "n_test": len(rows(after[0], "real")),
        "before": rates(level, "sft"),
        "after": rates(level, "grpo_dream"),
        "sft_all": rates(level, "sft_all"),
        "grpo_real": rates(level, "grpo_real"),
        "dream_after": rates(level, "grpo_dream", "dream"),
        "real_steps": {**steps, "rl_control": fmean(c["real_steps"]["rl"] for c in control)},  # type: ignore[index]
        "paired_interval": paired_interval([rows(c, "real") for c in after], [rows(c, "real") for c in before], ("grpo_dream", "sft")),
        "audit": audit_of(level, "grpo_dream"),
        "ablations": {
            v: {
                "after": rates(level, f"grpo_dream+{v}"),
                "dream_after": rates(level, f"grpo_dream+{v}", "dream"),
                "audit": audit_of(level, f"grpo_dream+{v}"),
            }
            for v in ("no_reasoning", "no_retrieval", "no_sheet")
        },
    }


def against_control(level: str) -> dict[str, object]:
    """GRPO in the dream less GRPO in the real environment, at equal updates."""
    ours, control = ([rows(c, "real") for c in cells(level, m)] for m in ("grpo_dream", "grpo_real"))
    return paired_interval(ours, control, ("grpo_dream", "grpo_real"))


def results_table() -> str:
    """Markdown: one row per level and method that has cells."""
    head = ["level", "method", "seeds", "**real success**, 150 test games", "dreamed (no result)"]
    head += ["real steps: logs / RL / probe", "updates", "min"]
    lines = [head, ["---"] * len(head)]
    for level in LEVELS:
        for method, name in ROWS.items():
            found = cells(level, method)
            if not found:
                continue
            steps = [c["real_steps"] for c in found]
            mean = [fmean(s[k] for s in steps) for k in ("logs", "rl", "probe")]  # type: ignore[index]
            lines.append(
                [
                    level,
                    name,
                    ", ".join(str(c["seed"]) for c in found),
                    spread(rates(level, method)),
                    spread(rates(level, method, "dream")) if method.startswith("grpo_dream") else "",
                    " / ".join(f"{n:,.0f}" for n in mean),
                    f"{fmean(float(str(c['updates'])) for c in found):,.0f}",
                    f"{fmean(float(str(c['wall_s'])) for c in found) / 60:.1f}",
                ]
            )
    return markdown(lines)


def audit_table() -> str:
    """Markdown: mean over seeds of each measure, one row per level and arm that was trained in a dream."""
    lines = [["level", "arm", *(k.replace("_", " ") for k in AUDIT_KEYS)], ["---"] * (2 + len(AUDIT_KEYS))]
    for level in LEVELS:
        for method in ROWS:
            if method.startswith("grpo_dream") and (a := audit_of(level, method)):
                lines.append([level, method, *(f"{a[k]:.3f}" if k in a else "-" for k in AUDIT_KEYS)])
    return markdown(lines)


def logs_table() -> str:
    """Markdown: episodes of the shipped logs by behaviour and end, as every cell reports them."""
    meta = read_json(shipped("logs.json"))
    found: dict[tuple[str, str], int] = {}
    for level in LEVELS:
        for name, n in meta[level]["counts"].items():  # type: ignore[index, call-overload]
            found[level, name] = n
    names = sorted({name for _, name in found})
    lines = [["episodes in the logs: behaviour/end", *LEVELS], ["---"] * (1 + len(LEVELS))]
    lines += [[name, *(f"{found.get((level, name), 0):,}" for level in LEVELS)] for name in names]
    return markdown(lines)


def pages() -> dict[Path, str]:
    """Each page that holds tables, as it should read."""
    from benchmarks.curriculum import table as curriculum_table  # which imports this module
    from benchmarks.experience import table as experience_table
    from benchmarks.rl import table as rl_table

    tables = [
        ("README.md", "cells", results_table()),
        ("docs/results.md", "cells", f"{results_table()}\n\n{audit_table()}\n\n{logs_table()}"),
        ("docs/results.md", "rl", rl_table()),
        ("docs/results.md", "experience", experience_table()),
        ("docs/results.md", "curriculum", curriculum_table()),
    ]
    found: dict[Path, str] = {}
    for name, what, table in tables:
        path = HERE.parent / name
        before, opening, rest = found.get(path, path.read_text(encoding="utf-8")).partition(f"<!-- {what} -->")
        _, closing, after = rest.partition(f"<!-- end of {what} -->")
        if not closing:
            sys.exit(f"error: {name}: no <!-- {what} --> ... <!-- end of {what} --> to write a table between")
        found[path] = f"{before}{opening}\n{table}\n{closing}{after}"
    return found


def quickstart_figures() -> dict[str, object]:
    """Measured by ``python -m benchmarks.quickstart``."""
    return read_json(QUICKSTART)


def missing() -> list[str]:
    """What ``slice.json`` still needs: cells, and the quickstart's figures."""
    found = [cell_path(level, m, s).stem for level in LEVELS for m in METHODS for s in SEEDS if not cell_path(level, m, s).exists()]
    return found + ([] if QUICKSTART.exists() else [f"{QUICKSTART.name} (python -m benchmarks.quickstart)"])


def slice_result() -> dict[str, object]:
    figures = quickstart_figures()
    return {
        **{level: level_result(level) for level in LEVELS},
        "against_control": {level: against_control(level) for level in LEVELS},
        "quickstart_wall_s": figures["quickstart_wall_s"],
        "peak_rss_gib": figures["peak_rss_gib"],
        "commit": commit(),
        "versions": versions(),
    }


def mixed() -> list[tuple[str, int]]:
    """Arms whose seeds do not share one experience model: known by its weights, or, in older cells, by the seconds that it took."""
    found = []
    for level in all_levels():
        for method in methods(level):
            kept = [c for c in cells(level, method) if "experience" in c["shared_wall_s"]]  # type: ignore[operator]
            told = all(c.get("experience_model") for c in kept)
            models = {str(c["experience_model"] if told else c["shared_wall_s"]["experience"]) for c in kept}  # type: ignore[index]
            if len(models) > 1:
                found.append((f"{level} {method}", len(models)))
    return found


def check() -> int:
    """0 where every cell file is current and ``slice.json``, where it is written, and the pages say what the cells say."""
    known = {cell_path(level, m, s) for level in all_levels() for m in methods(level) for s in range(10)}
    stale = [p.name for p in CELLS.glob("*.json") if p not in known]
    for name in stale:
        console.print(f"stale: {name} (config or code has changed; run its cell again)")
    for method, models in mixed():
        console.print(f"note: {method}: its seeds have {models} experience models, trained apart")
    path = RESULTS / "slice.json"
    differs, absent = False, missing()
    if path.exists() and absent:
        differs = True
        console.print(f"slice.json was written from files that are not there now: {', '.join(absent[:3])}")
    elif path.exists():
        written, now = read_json(path), slice_result()
        compared = (*LEVELS, "against_control", "quickstart_wall_s", "peak_rss_gib")
        differs = any(json.dumps(written[key], sort_keys=True) != json.dumps(now[key], sort_keys=True) for key in compared)
        if differs:
            console.print("slice.json differs from its cells; run make results")
    for page in (p for p, text in pages().items() if text != p.read_text(encoding="utf-8")):
        differs = True
        console.print(f"{page.name}: its table differs from the cells; run make results")
    if not stale and not differs:
        console.print(f"{len(list(CELLS.glob('*.json')))} cells, all current")
    return int(bool(stale) or differs)


def main() -> int:
    if "--check" in sys.argv:
        return check()
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    console.print(f"{results_table()}\n\n{audit_table()}\n", soft_wrap=True, markup=False)
    absent = missing()
    if absent:
        console.print(f"slice.json is not written: {len(absent)} files are missing (python -m benchmarks.grid list), first {absent[0]}")
    else:
        write_json(Path(RESULTS / "slice.json"), slice_result())
        console.print(f"written: {RESULTS / 'slice.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
