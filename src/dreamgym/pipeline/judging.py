"""How a run is judged: real success of its policies, the dream held against the real environment, attacks on the reward.

What is real in here is counted, and nothing of it flows back into training.
"""

from collections.abc import Sequence

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import DataError
from dreamgym.core.files import read_episodes, read_json, write_episodes, write_json
from dreamgym.core.types import Episode, StopReason
from dreamgym.envs.adapter import load_adapter
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.acting import actor, context_of, tokens_of
from dreamgym.pipeline.attack import attack_run
from dreamgym.pipeline.audit import audit_run
from dreamgym.pipeline.fidelity import fidelity_run
from dreamgym.pipeline.grounding import logged
from dreamgym.pipeline.logs import load_logs, tasks_of
from dreamgym.pipeline.noise import share_on_logged_tasks
from dreamgym.pipeline.play import panel_tasks, play_real, seats_for, success_rate
from dreamgym.pipeline.player import draws, experience_model, server
from dreamgym.pipeline.results import evaluation_figures
from dreamgym.pipeline.run import LOGS, Run, Summary
from dreamgym.rl.policy import Policy, Scripted


def evaluate(run: Run, arm: str) -> Summary:
    """Real success of ``sft`` (before), ``policy`` (after) or ``s2r`` (after it learned on for real); every episode is kept."""
    return judged(run, arm, actor(LocalLM.load(run.path(arm)), run.config))


def judged(run: Run, arm: str, policy: Policy) -> Summary:
    """Real success of ``policy`` on the run's evaluation panel; its episodes are kept under the name of ``arm``.

    Where the environment failed in some, those are played once more (``played_again``); what fails again is invalid.
    """
    config, adapter = run.config, load_adapter(run.config.env)
    counter = RealSteps()
    panel, samples = config.evaluation.panel, config.evaluation.samples
    tasks = panel_tasks(adapter, panel, config.evaluation.games)
    seats = seats_for(tasks, config.seed, samples)
    played = play_real(policy, adapter, seats, counter, panel, arm)
    failed = [i for i, r in enumerate(played) if r.episode.stop is StopReason.INVALID_ENV]
    if failed and len(failed) < len(played):  # once more, in a fresh environment: else games that fail now and then are left out
        for i, again in zip(failed, play_real(policy, adapter, [seats[i] for i in failed], counter, panel, arm), strict=True):
            played[i] = again
    episodes = [r.episode for r in played]
    write_episodes(run.path(f"eval-{arm}-{panel}.jsonl"), episodes)
    _some_valid(f"eval-{arm}", [e.valid for e in episodes], counter)
    return {
        "real_success": success_rate(played),
        "games": len(tasks),
        "played_again": len(failed),
        **evaluation_figures(episodes),
        "malformed": sum(not s.well_formed for r in played for s in r.samples) / max(sum(len(r.samples) for r in played), 1),
        "real_steps": counter.total,
    }


def _some_valid(stage: str, valid: Sequence[bool], counter: RealSteps) -> None:
    """Raises ``DataError`` where the environment failed in every episode: that is no measurement, and the stage is to be run again."""
    if valid and not any(valid):
        raise DataError(
            f"{stage}: the real environment failed in each of {len(valid)} episodes ({counter.total} real steps); what it raised is told"
            " above. Mend it and run the same command again"
        )


def audit_is_old(run: Run, stage: str = "audit", file: str = "audit.json") -> bool:
    """Whether an audit was made before there was a trained policy to audit, or before there was anybody who could play."""
    if not run.done(stage):
        return False
    played = read_json(run.path(file))["policies"]
    assert isinstance(played, dict | list)
    return any(name not in played for name in _trained(run) if name == "policy" or not played)


def _trained(run: Run) -> list[str]:
    """Policies that an audit can play: those of finished stages (a folder alone may hold a checkpoint or counted steps)."""
    return [name for name, stage in (("sft", "warm-start"), ("policy", "train")) if run.done(stage)]


def audit(run: Run) -> Summary:
    """Hold the dream against the real environment on games it was never trained on."""
    found = audit_run(
        run.config,
        load_adapter(run.config.env),
        experience_model(run, logged(run)),
        load_logs([run.path(LOGS)]),
        {name: LocalLM.load(run.path(name)) for name in _trained(run)},
        run.config.evaluation.panel,
    )
    if found.result["policies"] and not found.result["episodes"]:
        raise DataError("audit: the real environment failed in every episode, as is told above; mend it and run the same command again")
    write_episodes(run.path("audit-twins.jsonl"), found.twins)
    write_json(run.path("audit.json"), found.result)
    return {k: v for k, v in found.result.items() if isinstance(v, int | float)}


def long_audit(run: Run) -> Summary:
    """What ``pipeline/fidelity.py`` measures beyond the audit, on the run's panel; its result goes to ``fidelity.json``."""
    retrieval = logged(run)
    model = experience_model(run, retrieval)
    policies = {name: LocalLM.load(run.path(name)) for name in _trained(run)}
    adapter, logs = load_adapter(run.config.env), load_logs([run.path(LOGS)])
    trained = [name for name in policies if name == "policy"]
    panel, judge = run.config.evaluation.panel, run.config.evaluation.judge
    chat = server(judge) if judge else None
    found = fidelity_run(run.config, adapter, model, draws(model, retrieval), logs, policies, trained, panel, judge=chat)
    plays = policies.get("policy") or policies.get("sft")
    if plays is not None:
        acting = Policy(plays, run.config.rl.temperature, tokens_of(run.config), context_of(run.config))
        found["simulator_variance_share"] = share_on_logged_tasks(model, retrieval, adapter.cap, acting, tasks_of(logs), run.config.seed)
    if judge and chat:
        found |= {f"judge_{name}": chat.counts[name] for name in ("tokens_in", "tokens_out")}
        found["judge_usd"] = judge.usd(chat.counts["tokens_in"], chat.counts["tokens_out"])
    write_json(run.path("fidelity.json"), found)
    return {k: v for k, v in found.items() if isinstance(v, int | float)}


def attack(run: Run) -> Summary:
    """Attacks on the reward, staged in real wins on the run's panel: what is granted that the real environment does not give.

    The wins are those of the evaluation; where it had none, the adapter's explorers play for some (counted as audit).
    """
    config, adapter, counter = run.config, load_adapter(run.config.env), RealSteps()
    files = [run.path(f"eval-{arm}-{config.evaluation.panel}.jsonl") for arm in ("policy", "sft")]
    won = [e for f in files if f.exists() for e in read_episodes(f) if e.stop == StopReason.WON]
    for name, explorer in adapter.explorers().items() if not won else ():
        seats = seats_for(panel_tasks(adapter, config.evaluation.panel, 30), config.seed)
        played = play_real(Scripted(explorer), adapter, seats, counter, "audit", name)
        won += [r.episode for r in played if r.episode.stop == StopReason.WON]
    if not won:
        raise DataError(f"{run.folder}: neither the evaluation nor an explorer won an episode, so there is no place to attack")
    model = experience_model(run, logged(run))
    scenes: dict[str, Episode] = {}
    for e in won:
        scenes.setdefault(e.task.id, e)
    found = attack_run(model, adapter, list(scenes.values())[:30], counter, config.experience.prompt.k > 0).result()
    write_json(run.path("attacks.json"), found)
    return {**found, "real_steps_audit": counter.total}
