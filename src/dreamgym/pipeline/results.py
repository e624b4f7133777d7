"""Result files: the figures of a run in the schema of the benchmark tables, each recomputable from per-episode rows."""

import hashlib
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from statistics import fmean

from dreamgym.core.files import read_episodes, read_json, write_json
from dreamgym.core.types import Episode, result_row
from dreamgym.pipeline.run import Run
from dreamgym.pipeline.stats import paired_interval, pass_at

AUDIT_KEYS = (
    "success_precision",
    "success_recall",
    "next_state_macro",
    "next_state_changing",
    "invalid",
    "optimism",
    "optimism_dream_trained",
    "dream_win_precision",
)
PACKAGES = ("dreamgym", "torch", "transformers", "textworld", "numpy")


def versions() -> dict[str, str]:
    """Versions that results depend on; packages that are not installed are left out."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_rss_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def panel_hash(episodes: Iterable[Episode]) -> str:
    """Names the games that were played: a hash of their ids."""
    return hashlib.blake2b("\n".join(sorted({e.task.id for e in episodes})).encode(), digest_size=5).hexdigest()


def successes_of(episodes: Iterable[Episode]) -> dict[str, list[float]]:
    """Task id -> real success (0 or 1) of each of its valid episodes; a task without one is left out."""
    found: dict[str, list[float]] = {}
    for e in episodes:
        if e.valid:
            found.setdefault(e.task.id, []).append(float(e.real_success()))
    return found


def successes_by_task(episodes: Iterable[Episode]) -> dict[str, float]:
    """Task id -> real success, mean over its valid episodes."""
    return {name: fmean(found) for name, found in successes_of(episodes).items()}


def evaluation_figures(episodes: Sequence[Episode]) -> dict[str, object]:
    """Of one arm's real evaluation: pass@k up to the episodes that each game has, and of valid episodes the steps, and how many of them
    changed nothing; how many were invalid."""
    valid = [e for e in episodes if e.valid]
    steps = [t for e in valid for t in e.transitions]
    found = list(successes_of(episodes).values())
    idle = sum(not t.change and t.outcome == "go" for t in steps)
    return {
        "pass_at": {str(k): pass_at(k, found) for k in range(1, max(map(len, found), default=0) + 1)},
        "mean_steps": len(steps) / max(len(valid), 1),
        "no_effect": idle / len(steps) if steps else 0.0,
        "invalid": sum(not e.valid for e in episodes),
    }


def headline(results: Mapping[str, object]) -> str:
    """The one sentence a run ends with."""
    before, after, steps, earlier = (results[k] for k in ("before", "after", "real_steps", "continued"))
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert isinstance(steps, dict)
    first = f", and {steps['start']} of its warm start" if steps.get("start") else ""
    spent = f"{steps['rl']}{first}" + (f", and {steps['earlier']} of learning and probes in {earlier} and before" if earlier else "")
    return (
        f"Real success on {results['n_test']} games never trained on: before {before[0]:.2f} -> after {after[0]:.2f}"
        f" (real steps in RL: {spent}; one seed)"
    )


def _baselines(run: Run) -> dict[str, object]:
    """Real success of the policies that learned without rewards, where this run has any (``dreamgym baseline``), and their real steps."""
    done = {p.stem.removeprefix("baseline-"): read_json(p) for p in sorted(run.path("stages").glob("baseline-*.json"))}
    return {name: {"success": [s["real_success"]], "real_steps": {"rl": s["learning_real_steps"]}} for name, s in done.items()}


def write_results(run: Run) -> dict[str, object]:
    """``results.json`` of a run: the keys of a level in the benchmark's ``slice.json``, for one seed and the run's own config.

    ``before`` and ``after`` are the policy that this run began with (its warm start, or that of the run that it continues: ``continued``)
    and the trained one, wherever it was trained; ``s2r``: after learning on in the
    real environment, empty where it did not. One run trains one arm; other arms and ablations, which the benchmark grid trains, are
    empty here.
    """
    panel = run.config.evaluation.panel
    before = list(read_episodes(run.path(f"eval-sft-{panel}.jsonl")))
    after = list(read_episodes(run.path(f"eval-policy-{panel}.jsonl")))
    audit = read_json(run.path("audit.json"))
    rl = run.summary("train")
    stages = {p.stem: read_json(p)["wall_s"] for p in sorted(run.path("stages").glob("*.json"))}
    policies = audit["policies"]
    assert isinstance(policies, dict)
    s2r: dict[str, object] = {}
    played = {"sft": before, "policy": after}
    if run.done("eval-s2r"):
        learned = list(read_episodes(run.path(f"eval-s2r-{panel}.jsonl")))
        played["s2r"] = learned
        spent = run.summary("sim-to-real")
        s2r = {
            "after": [run.summary("eval-s2r")["real_success"]],
            "real_steps": {"rl": spent["rl_real_steps"], "probe": spent["probe_real_steps"]},
            "paired_interval": paired_interval([successes_by_task(learned)], [successes_by_task(after)], ("s2r", "after")),
        }
    results: dict[str, object] = {
        "seeds": [run.config.seed],
        "continued": run.config.continued and run.config.continued.run,
        "n_test": len({e.task.id for e in after}),
        "panel": panel,
        "panel_hash": panel_hash(after),
        "before": [run.summary("eval-sft")["real_success"]],
        "after": [run.summary("eval-policy")["real_success"]],
        "evaluation": {
            arm: {**evaluation_figures(episodes), "malformed": run.summary(f"eval-{arm}").get("malformed")}
            for arm, episodes in played.items()
        },
        "sft_all": [],
        "grpo_real": [],
        "dream_after": [policies["policy"]["dream"]],
        "real_steps": {
            "logs": run.summary("collect")["real_steps"],
            "earlier": run.summary("collect").get("earlier_real_steps", 0),
            "start": run.summary("warm-start").get("learning_real_steps", 0),
            "rl": rl["rl_real_steps"],
            "probe": rl["probe_real_steps"],
            "rl_control": None,
            "audit": audit["real_steps_audit"],
        },
        "paired_interval": paired_interval([successes_by_task(after)], [successes_by_task(before)], ("after", "before")),
        "audit": {k: audit[k] for k in AUDIT_KEYS},
        "s2r": s2r,
        "baselines": _baselines(run),
        "ablations": {},
        "wall_s": stages,
        "peak_rss_gib": round(peak_rss_gib(), 2),
        "versions": versions(),
        "rows": [result_row(e).model_dump(mode="json") for e in after],
    }
    write_json(run.path("results.json"), results)
    return results
