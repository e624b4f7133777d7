"""The stages of policy learning: in the dream, in the real environment as the control, and in the real one after the dream (S2R)."""

import math
import shutil
from collections.abc import Iterable
from typing import Literal

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.core.files import read_json
from dreamgym.core.types import Task
from dreamgym.curriculum.clusters import clusters_of
from dreamgym.envs.adapter import load_adapter
from dreamgym.experience.model import ExperienceModel
from dreamgym.pipeline.acting import context_of, tokens_of
from dreamgym.pipeline.config import Reinforcement, RunConfig
from dreamgym.pipeline.grounding import Followed, encoder_of, following, growing, logged, run_buffer
from dreamgym.pipeline.logs import load_logs, tasks_of
from dreamgym.pipeline.play import panel_tasks
from dreamgym.pipeline.player import experience_model, remote_costs, task_generator
from dreamgym.pipeline.rl_run import RLRun
from dreamgym.pipeline.run import LOGS, Run, bar, console
from dreamgym.pipeline.trackers import tracked
from dreamgym.replay.enrichment import Enriched
from dreamgym.rl.monitors import alarms
from dreamgym.rl.ranks import ALONE, Ranks
from dreamgym.rl.trainer import CRITIC

ALGORITHMS = {"group": "GRPO", "leave_one_out": "RLOO", "gae": "PPO"}


def train_policy(run: Run, ranks: Ranks = ALONE) -> dict[str, object]:
    """Policy learning from the warm start, in the dream (0 real steps) or, as the control, in the real environment."""
    config = run.config
    check_learning(config, "rl")
    dreaming = config.rl.environment == "dream"
    if dreaming:
        check_audit(run)
    model, replay = _dream(run, ranks) if dreaming else (None, None)
    try:
        found = _reinforce(run, config.rl, ("sft", "policy_run", "policy"), model, replay, ranks)
    finally:
        if replay is not None:
            replay.buffer.close()
    spent = {k: v for k, v in found.items() if isinstance(v, float)}
    if config.experience.endpoint:
        found |= remote_costs(model, config.experience.endpoint, spent)
    if (opinion := config.experience.second_opinion) and opinion.judge:
        found["judge_usd"] = opinion.judge.usd(spent.get("judge_tokens_in", 0.0), spent.get("judge_tokens_out", 0.0))
    if (admit := config.replay.admit) and admit.judge:
        found["admission_usd"] = admit.judge.usd(spent.get("admission_tokens_in", 0.0), spent.get("admission_tokens_out", 0.0))
    return found


def sim_to_real(run: Run) -> dict[str, object]:
    """The dream's policy learns on in the real environment, under a hard budget of real transitions (S2R, arXiv 2511.03773 §4.4)."""
    check_learning(run.config, "s2r")
    return _reinforce(run, run.config.s2r, ("policy", "s2r_run", "s2r"), None, None, first=True)


STALE = {"train": ("eval-policy", "audit", "long-audit", "sim-to-real", "eval-s2r"), "sim-to-real": ("eval-s2r",)}
"""What was made of the policy that a stage leaves, by that stage."""


def reopen(run: Run, stage: str) -> None:
    """Let a finished stage of policy learning go on where it ended at a limit that has been raised since."""
    if stage not in STALE or not run.done(stage):
        return
    found, how = run.summary(stage), run.config.rl if stage == "train" else run.config.s2r
    raised = {
        "budget": how.real_budget is None or how.real_budget > int(str(found["real_budget"] or 0)),
        "patience": how.patience == 0 or how.patience > int(str(found.get("patience", 0))),
        "alarm": how.watch.model_dump(mode="json") != found.get("watch"),
    }
    if not raised.get(str(found.get("ended"))):
        return
    run.path("results.json").unlink(missing_ok=True)
    for name in (stage, *STALE[stage]):
        run.forget(name)
        for path in run.folder.glob(f"{name}-*.jsonl"):
            path.unlink()


def _reinforce(
    run: Run,
    how: Reinforcement,
    folders: tuple[str, str, str],
    model: ExperienceModel | None,
    replay: Enriched | Followed | None,
    ranks: Ranks = ALONE,
    first: bool = False,
) -> dict[str, object]:
    """One run of policy learning; ``folders``: where it starts, works, and leaves its policy; ``first``: probes begin with the start."""
    config, adapter = run.config, load_adapter(run.config.env)
    start, work, policy = map(run.path, folders)
    counter = RealSteps(budget=how.real_budget)
    tasks = tasks_of(load_logs([run.path(LOGS)]))
    check_kinds(how, tasks.values(), adapter.name)
    seed, wanted = config.seed, config.curriculum
    choose = wanted if model is not None else wanted.model_copy(update={"synthetic": 0.0})  # the real environment plays logged tasks only
    if model is None and ranks.first:
        if wanted.synthetic:
            console.print("  curriculum.synthetic has no effect here: the real environment plays logged tasks only")
        if wanted.value == "progress":
            console.print("  curriculum.value: progress is variance here: nobody says in the real environment how far an episode came")
    clusters = clusters_of(tasks, choose.clusters, encoder_of(run), seed) if choose.clusters else None
    pooled = clusters if how.advantage == "gae" else None
    generator, achieved = None, None
    if model is not None and choose.synthetic:
        generator, achieved = task_generator(model, adapter, list(tasks.values()), wanted, seed, pooled)
    probe = panel_tasks(adapter, "probe", config.evaluation.probe_games) if how.probe_every else []
    acts = (context_of(config), tokens_of(config))
    rl = RLRun(start, how, tasks, adapter, work, model, replay, counter, seed, *acts, ranks, choose, generator, achieved, clusters)
    name = ALGORITHMS[how.advantage]
    trackers = config.trackers if ranks.first else []
    source: Literal["dream", "real"] = "real" if model is None else "dream"
    with bar() as progress, tracked(trackers, work, source, config, rl.iteration) as track:
        task = progress.add_task(name, total=how.iterations, completed=rl.iteration)

        def report(m: dict[str, float]) -> None:
            for text in alarms(rl.trainer.progress.metrics, how.watch):
                progress.console.print(f"  [yellow]iteration {m['iteration']:.0f}:[/yellow] {text}")
            track(m)
            shown = f"{name} {source} reward {m.get('reward', math.nan):.2f} invalid {m['invalid']:.2f}"
            progress.update(task, advance=1, description=shown)

        lm = rl.run(report, probe, how.probe_every, config.evaluation.temperature, how.patience, first)
    if rl.ended == "budget":
        used = f"{counter.total} used, {rl.iteration} iterations"
        console.print(f"  the budget of {how.real_budget} real steps bears no further iteration ({used})")
    if rl.ended == "alarm":
        console.print(f"  ended after {rl.iteration} iterations: {'; '.join(alarms(rl.trainer.progress.metrics, how.watch))}")
    if ranks.first:
        lm.save(policy)
        if (critic := work / "policy" / CRITIC).exists():
            shutil.copytree(critic, policy / CRITIC, dirs_exist_ok=True)
    metrics = rl.trainer.progress.metrics
    spent = {name: sum(m[name] for m in metrics) for name in (metrics[0] if metrics else ()) if "_tokens_" in name or "_calls" in name}
    return {
        "iterations": rl.iteration,
        "ended": rl.ended,
        "real_budget": how.real_budget,
        "patience": how.patience,
        "watch": how.watch.model_dump(mode="json"),
        "transitions": sum(m["transitions"] + m.get("transitions_checking", 0.0) for m in metrics),
        "rl_real_steps": counter.counts.get("rl", 0),
        "probe_real_steps": counter.counts.get("probe", 0),
        "probes": rl.probe,
        "rollout_s": sum(m["rollout_s"] for m in metrics),
        "update_s": sum(m["update_s"] for m in metrics),
        **({"write_s": sum(m.get("write_s", 0.0) for m in metrics)} if generator is not None else {}),
        **spent,
    }


def check_learning(config: RunConfig, *sections: Literal["rl", "s2r"]) -> None:
    """What these sections ask of the environment, held against it before anything is trained. Raises ``ConfigError``."""
    adapter = load_adapter(config.env)
    if config.curriculum.hindsight and not hasattr(adapter, "achieved"):
        raise ConfigError(f"curriculum.hindsight: the adapter {adapter.name} has no achieved(task, episode); set it to false")
    for section in sections:
        how: Reinforcement = getattr(config, section)
        if how.probe_every:
            games = len(panel_tasks(adapter, "probe", config.evaluation.probe_games))
            check_budget(section, how, games * (adapter.cap + 1))  # where a reset counts as a step


def check_kinds(how: Reinforcement, tasks: Iterable[Task], name: str) -> None:
    """Raises ``ConfigError`` where tasks of several kinds are asked for and there is one."""
    if how.normalise == "kind" and len({t.difficulty for t in tasks}) < 2:
        raise ConfigError(f"normalise: kind: all logged tasks of {name} are of one kind; give them a difficulty each, or leave it out")


def check_budget(section: str, how: Reinforcement, probe: int) -> None:
    """Raises ``ConfigError`` where one probe may use up all real steps, ``probe`` of them at most, so that none are left to learn from."""
    if how.real_budget is not None and probe >= how.real_budget:
        raise ConfigError(
            f"{section}.real_budget: {how.real_budget} does not bear a probe, which may take {probe} real steps; raise it, lower"
            f" evaluation.probe_games, or set {section}.probe_every to 0"
        )


def _dream(run: Run, ranks: Ranks) -> tuple[ExperienceModel, Enriched | Followed | None]:
    """Who plays the environment in training, and the buffer that grows by it (None where it does not)."""
    if ranks.first:
        run_buffer(run).close()  # made, where no stage has read it yet
    ranks.wait()
    replay = growing(run) if ranks.first else following(run)
    retrieval = replay.snapshot() if replay is not None else logged(run)
    return experience_model(run, retrieval, tasks_seen=True), replay


def check_audit(run: Run) -> None:
    """Say how far the dream can be trusted before a policy trains in it. Raises ``ConfigError`` below ``rl.audit_floor``."""
    if not run.path("audit.json").exists():
        console.print(f"  [yellow]no audit yet[/yellow]: dreamgym audit --run {run.folder} says how far this dream can be trusted")
        return
    found, floor = read_json(run.path("audit.json")), run.config.rl.audit_floor
    if not found.get("episodes"):
        nobody = "the adapter has no explorers, and there was no policy yet"
        console.print(f"  [yellow]the audit played no episode[/yellow] ({nobody}): it says nothing about this dream")
        return
    keys = ("success_precision", "success_recall", "next_state_macro", "invalid")
    shown = {k: float(str(found[k])) for k in keys if found.get(k) is not None}
    if not found.get("successes"):
        console.print("  [yellow]nobody won a real episode of the audit[/yellow]: it does not say whether this dream knows a success")
        shown = {k: v for k, v in shown.items() if not k.startswith("success")}
    console.print("  audit: " + ", ".join(f"{k} {v:.3f}" for k, v in shown.items()))
    low = {k: v for k, v in shown.items() if k in ("success_precision", "next_state_macro") and v < floor}
    if low:
        figures = ", ".join(f"{k} {v:.3f}" for k, v in low.items())
        raise ConfigError(
            f"{run.path('audit.json')}: {figures} below rl.audit_floor {floor:g}: a policy would learn what this dream gets wrong;"
            " train the experience model on more or better logs, or lower rl.audit_floor (0 = train anyway)"
        )
