"""``experience.json`` and its tables: how far the experience model can be trusted, and what each of its parts is worth.

    python -m benchmarks.experience              # reads cells and result files, writes benchmarks/results/experience.json
    python -m benchmarks.experience --ablations  # makes the cells of Table 2's rows that are missing first (days of one core)
    python -m benchmarks.experience --data       # and those of the data-efficiency curve
    python -m benchmarks.experience --check      # exit 1 where what is written differs from them
    python -m benchmarks.experience --history    # how many logged steps history could decide at all

It needs the cells of ``ABLATIONS``, ``DATA``, ``LUCK`` and ``UNCERTAINTY`` and the files of ``benchmarks.fidelity``,
``benchmarks.adversarial`` (both levels) and ``benchmarks.faults``; it names what is missing.
"""

import sys
from statistics import fmean

from benchmarks.cells import HERE, LEVELS, RL_LEVEL, all_levels, cell_path, logs_of, measure_code, seeds_of
from benchmarks.tables import Cell, audit_of, cells, console, markdown, publish, rates, rows, spread
from dreamgym.core.files import read_json
from dreamgym.core.state import entity
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.pipeline.logs import tasks_of
from dreamgym.pipeline.stages import shipped_logs
from dreamgym.pipeline.stats import paired_interval

RESULTS = HERE / "results"
AUDIT = ("success_precision", "success_recall", "next_state_macro", "next_state_changing", "invalid", "dream_win_precision")
"""From the audits of the cells of ``grpo_dream``, mean over seeds; the rest comes from the long audit, another training of the same
experience model: what both have measured is the worse of the two."""
LONG = ("done_accuracy", "next_state_all", "epsilon_r", "spearman", "optimism", "optimism_dream_trained", "n_policies", "n_episodes")
ABLATIONS = {
    "full": ("standard", "grpo_dream"),
    "no_reasoning": ("standard", "grpo_dream+no_reasoning"),
    "no_retrieval": ("standard", "grpo_dream+no_retrieval"),
    "no_sheet": ("standard", "grpo_dream+no_sheet"),
    "full_easy": ("easy", "grpo_dream"),
    "no_reasoning_easy": ("easy", "grpo_dream+no_reasoning"),
    "history": ("easy", "grpo_dream+history"),
    "no_history": ("easy", "grpo_dream+no_history"),
    "k3": ("easy", "grpo_dream+k3"),
    "best_first": ("easy", "grpo_dream+best_first"),
    "generic_teacher": ("easy", "grpo_dream+generic_teacher"),
    "prompted": ("easy", "grpo_dream+prompted"),
}
"""Each row's level and method. ``no_history`` stands beside ``history``: both see only what is visible now."""
AGAINST = {"full_easy": "full_easy", "no_history": "history"}
AGAINST |= dict.fromkeys(("no_reasoning_easy", "history", "k3", "best_first", "generic_teacher", "prompted"), "full_easy")
"""The row that a row is paired with; ``full`` for the others."""
DATA = {n: f"grpo_dream+{n // 1000}k_steps" for n in (2_000, 10_000, 20_000, 40_000)}
"""Data efficiency on *easy*, by logged steps."""
UNCERTAINTY = {
    "no_reasoning": ("grpo_dream+no_reasoning_cautious", "grpo_dream+no_reasoning"),
    "no_reasoning_em1": ("grpo_dream+no_reasoning_em1_cautious", "grpo_dream+no_reasoning_em1"),
}
"""On *easy*, by experience model: silent where it is not sure, and not."""
UNSURE = [("easy", m) for both in UNCERTAINTY.values() for m in both]
LUCK = {name: ("easy", f"grpo_dream+{name}") for name in ("reasoning_em1", "no_reasoning_em1", "no_reasoning_em2")}
"""Experience models of the rows ``full_easy`` and ``no_reasoning_easy``, trained with other seeds; one policy seed each."""
FIRST = RESULTS / "earlier"
"""Cells of ``no_reasoning_easy`` in another training of its experience model, with equal settings on another machine."""
Json = dict[str, object]


def missing() -> list[str]:
    """Cells and files that are not there, or were made by other code."""
    wanted = [*ABLATIONS.values(), *(("easy", m) for m in DATA.values()), *UNSURE, *LUCK.values()]
    absent = [f"{lv} {method} seed {s}" for lv, method in wanted for s in seeds_of(lv, method) if not cell_path(lv, method, s).exists()]
    measured = {f"{name}-{level}.json": measure_code(name, level) for name in ("fidelity", "adversarial") for level in LEVELS}
    for name, code in {**measured, "faults.json": measure_code("faults")}.items():
        if not (RESULTS / name).exists():
            absent.append(name)
        elif read_json(RESULTS / name).get("code") != code:
            absent.append(f"{name} (stale)")
    return absent


def audit_result(level: str) -> Json:
    found, long = audit_of(level, "grpo_dream"), read_json(RESULTS / f"fidelity-{level}.json")
    calibration, variation = long["calibration"], long["epsilon_p"]
    assert isinstance(calibration, dict)
    assert isinstance(variation, dict)
    worse = {k: max(float(str(long[k])), found[k]) for k in ("optimism", "optimism_dream_trained")}
    taken = {k: found[k] for k in AUDIT} | {k: long[k] for k in LONG} | worse
    return {**taken, "epsilon_p": variation["mean"], "ece": calibration["ece"]}


def audited(level: str) -> bool:
    """Whether a level has what ``audit_result`` reads; those of the targets must (``missing``)."""
    return level in all_levels() and bool(cells(level, "grpo_dream")) and (RESULTS / f"fidelity-{level}.json").exists()


def ablation(name: str) -> Json:
    level, method = ABLATIONS[name]
    base_level, base_method = ABLATIONS[AGAINST.get(name, "full")]
    ours, theirs = ([rows(c, "real") for c in cells(lv, m)] for lv, m in ((level, method), (base_level, base_method)))
    return {
        "level": level,
        "real_success": rates(level, method),
        "dream_success": rates(level, method, "dream"),
        "audit": audit_of(level, method),
        "against": AGAINST.get(name, "full"),
        "paired_interval": paired_interval(ours, theirs, (name, AGAINST.get(name, "full"))),
    }


def first_training() -> list[Cell]:
    return [read_json(p) for p in sorted(FIRST.glob("*.json"))]


def luck(found: list[Cell]) -> Json:
    """Of one training of an experience model."""
    audits = [c["audit"] for c in found]
    assert all(isinstance(a, dict) for a in audits)
    return {
        "real_success": [fmean(rows(c, "real").values()) for c in found],
        "dream_win_precision": [a["dream_win_precision"] for a in audits],  # type: ignore[index]
        "lost": [a["next_state"]["lost"] for a in audits],  # type: ignore[index]
    }


def adversarial() -> Json:
    """Both levels together."""
    found = [read_json(RESULTS / f"adversarial-{level}.json") for level in LEVELS]
    total = {k: sum(int(str(f[k])) for f in found) for k in ("n", "granted", "due", "due_granted")}
    return {**total, "kinds": max(int(str(f["kinds"])) for f in found)}


def result() -> Json:
    faults = read_json(RESULTS / "faults.json")
    return {
        "audit": {level: audit_result(level) for level in (*LEVELS, RL_LEVEL) if audited(level)},
        "ablations": {name: ablation(name) for name in ABLATIONS},
        "data_efficiency": {str(n): {"real_success": rates("easy", m), "audit": audit_of("easy", m)} for n, m in DATA.items()},
        "training_luck": {**{name: luck(cells(*of)) for name, of in LUCK.items()}, "no_reasoning_first": luck(first_training())},
        "history_decides": {level: history_decides(level) for level in LEVELS},
        "adversarial": adversarial(),
        "faults": {k: faults[k] for k in ("episodes", "valid", "invalid", "lost", "accidental_rewards", "time_ratio")},
        "uncertainty": {
            "auroc": {lv: read_json(RESULTS / f"fidelity-{lv}.json")["uncertainty_auroc"] for lv in LEVELS},
            "level": "easy",
            "real_success_with": [x for cautious, _ in UNCERTAINTY.values() for x in rates("easy", cautious)],
            "real_success_without": [x for _, plain in UNCERTAINTY.values() for x in rates("easy", plain)],
            "by_experience_model": {m: {"with": rates("easy", a), "without": rates("easy", b)} for m, (a, b) in UNCERTAINTY.items()},
        },
    }


def history_decides(level: str) -> Json:
    """Logged steps, seen without what is out of sight: those that show a thing again which was seen before and is out of sight now, so
    that the steps before tell what comes; and how many of them show it as the world sheet has it."""
    logs = shipped_logs(logs_of(level), TextWorldAdapter(level, "current"))
    tasks, steps, again, as_sheet = tasks_of(logs), 0, 0, 0
    for episode in logs:
        sheet = {*tasks[episode.task.id].sheet, *episode.task.first_state}
        seen: set[str] = set()
        for t in episode.transitions:
            now = {entity(line) for line in t.state}
            seen |= now
            shown = [line for line in t.added if entity(line) in seen - now]
            steps, again, as_sheet = steps + 1, again + bool(shown), as_sheet + (bool(shown) and sheet.issuperset(shown))
            seen |= {entity(line) for line in t.added}
    return {"steps": steps, "shown_again": again, "as_the_sheet_has_it": as_sheet}


def table() -> str:
    """Markdown: the rows that have cells."""
    lines = [["level", "experience model", "seeds", "real success", "dreamed (no result)", *(k.replace("_", " ") for k in AUDIT)]]
    lines.append(["---"] * len(lines[0]))
    named = [*ABLATIONS.items(), *LUCK.items(), *((f"{n:,} logged steps", ("easy", m)) for n, m in DATA.items())]
    named += [(f"{name}, cautious", ("easy", cautious)) for name, (cautious, _) in UNCERTAINTY.items()]
    for name, (level, method) in named:
        found, a = cells(level, method), audit_of(level, method)
        if found:
            shown = [f"{a[k]:.3f}" if k in a else "-" for k in AUDIT]
            seeds = ", ".join(str(c["seed"]) for c in found)
            lines.append([level, name, seeds, spread(rates(level, method)), spread(rates(level, method, "dream")), *shown])
    return markdown(lines)


def main() -> int:
    if "--history" in sys.argv:
        for level in LEVELS:
            console.print(level, history_decides(level))
        return 0
    wanted = {"--ablations": [*ABLATIONS.values(), *LUCK.values(), *UNSURE], "--data": [("easy", m) for m in DATA.values()]}
    for word in wanted.keys() & sys.argv:
        from benchmarks.grid import make

        make((level, method, s) for level, method in wanted[word] for s in seeds_of(level, method))
    return publish("experience", table, missing(), result, "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
