"""Tables from cells: ``make results`` prints them and writes ``slice.json``; ``make check-results`` fails on stale cells.

    python -m benchmarks.tables            # read the cells, write benchmarks/results/slice.json, print the tables
    python -m benchmarks.tables --check    # exit 1 where a cell of a table is stale, or slice.json differs from its cells

``slice.json`` is written only when every headline cell is there; until then the tables show what exists.
"""

import json
import sys
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from benchmarks.grid import CELLS, HERE, LEVELS, METHODS, SEEDS, cell_path, commit
from dreamgym.core.files import read_json, write_json
from dreamgym.pipeline.results import AUDIT_KEYS, versions
from dreamgym.pipeline.stats import paired_interval

RESULTS = HERE / "results"
console = Console(highlight=False, width=160)
Cell = dict[str, object]


def cells(level: str, method: str) -> list[Cell]:
    """The current cells of a method, by seed."""
    return [read_json(p) for p in (cell_path(level, method, s) for s in SEEDS) if p.exists()]


def rows(cell: Cell, source: str) -> dict[str, float]:
    key = "success" if source == "real" else "dream_success"
    found = cell["rows"]
    assert isinstance(found, list)
    return {r["task"]: float(r[key]) for r in found if r["source"] == source and r["panel"] == "test" and r[key] is not None}


def rates(level: str, method: str, source: str = "real") -> list[float]:
    return [fmean(rows(c, source).values()) for c in cells(level, method)]


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "") + f" (n={len(values)})"


def audit_of(level: str, method: str) -> dict[str, float]:
    """Each measure, mean over seeds."""
    audits = [c["audit"] for c in cells(level, method)]
    known = {k: [float(a[k]) for a in audits if a[k] is not None] for k in AUDIT_KEYS}  # type: ignore[index]
    return {k: fmean(values) for k, values in known.items() if values}


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


def print_level(level: str) -> None:
    table = Table(
        "method",
        "real success",
        "dreamed (no result)",
        "real steps: logs / rl / probe",
        "updates",
        "training, min",
        title=f"TextWorld cooking, {level}, test",
    )
    for method in METHODS:
        found = cells(level, method)
        if not found:
            table.add_row(method, "-", "-", "-", "-", "-")
            continue
        steps = [c["real_steps"] for c in found]
        mean = {k: fmean(s[k] for s in steps) for k in ("logs", "rl", "probe")}  # type: ignore[index]
        table.add_row(
            method,
            spread(rates(level, method)),
            spread(rates(level, method, "dream")) if method.startswith("grpo_dream") else "",
            " / ".join(f"{mean[k]:,.0f}" for k in mean),
            f"{fmean(float(c['updates']) for c in found):,.0f}",  # type: ignore[arg-type]
            f"{fmean(float(c['wall_s']) for c in found) / 60:.1f}",
        )  # type: ignore[arg-type]
    console.print(table)
    audits = Table("audit", *AUDIT_KEYS)
    for method in METHODS:
        if method.startswith("grpo_dream") and (a := audit_of(level, method)):
            audits.add_row(method, *(f"{a[k]:.3f}" if k in a else "-" for k in AUDIT_KEYS))
    console.print(audits)


def quickstart_figures() -> dict[str, object]:
    """Measured by ``python -m benchmarks.quickstart``."""
    path = RESULTS / "quickstart.json"
    return read_json(path) if path.exists() else {}


def complete() -> list[str]:
    """Cells that ``slice.json`` still needs."""
    return [cell_path(level, m, s).stem for level in LEVELS for m in METHODS for s in SEEDS if not cell_path(level, m, s).exists()]


def slice_result() -> dict[str, object]:
    figures = quickstart_figures()
    return {
        **{level: level_result(level) for level in LEVELS},
        "quickstart_wall_s": figures["quickstart_wall_s"],
        "peak_rss_gib": figures["peak_rss_gib"],
        "commit": commit(),
        "versions": versions(),
    }


def check() -> int:
    """0 where every cell file is current and ``slice.json`` says what the cells say."""
    known = {cell_path(level, m, s) for level in LEVELS for m in (*METHODS, "base") for s in range(10)}
    stale = [p.name for p in CELLS.glob("*.json") if p not in known]
    for name in stale:
        console.print(f"stale: {name} (config or code has changed; run its cell again)")
    path = RESULTS / "slice.json"
    differs = False
    if path.exists():
        written, now = read_json(path), slice_result()
        differs = any(json.dumps(written[level], sort_keys=True) != json.dumps(now[level], sort_keys=True) for level in LEVELS)
        if differs:
            console.print("slice.json differs from its cells; run make results")
    if not stale and not differs:
        console.print(f"{len(list(CELLS.glob('*.json')))} cells, all current")
    return int(bool(stale) or differs)


def main() -> int:
    if "--check" in sys.argv:
        return check()
    for level in LEVELS:
        print_level(level)
    missing = complete()
    if missing:
        console.print(f"slice.json is not written: {len(missing)} cells are missing (python -m benchmarks.grid list)")
    else:
        write_json(Path(RESULTS / "slice.json"), slice_result())
        console.print(f"written: {RESULTS / 'slice.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
