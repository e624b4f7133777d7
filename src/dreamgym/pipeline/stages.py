"""The stages of a run, each usable alone, each reading and writing plain files in the run directory.

collect -> annotate -> base -> train_experience -> warm_start -> train (-> sim_to_real) -> evaluate -> audit -> (report)
"""

import shutil
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from rich.progress import Progress

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError, DataError, PanelLeakError
from dreamgym.core.files import read_episodes, read_json, write_episodes
from dreamgym.core.types import Episode, Panel
from dreamgym.envs.adapter import Adapter, load_adapter
from dreamgym.experience.annotate import GenericTeacher, annotate
from dreamgym.experience.teach import ANNOTATIONS, estimate, summary, teach, unexplained
from dreamgym.lm.fit import FitConfig
from dreamgym.pipeline.acting import context_of, tokens_of
from dreamgym.pipeline.config import Optimisation, RunConfig
from dreamgym.pipeline.continued import Earlier, lesson, met_before, take_annotations, take_policy, train_further
from dreamgym.pipeline.early_start import early_start
from dreamgym.pipeline.grounding import logged
from dreamgym.pipeline.judging import audit, evaluate
from dreamgym.pipeline.learn import train_base, train_experience, warm_start
from dreamgym.pipeline.logs import counts, load_logs, successes, tasks_of
from dreamgym.pipeline.player import prompt_config, server
from dreamgym.pipeline.reinforce import sim_to_real, train_policy
from dreamgym.pipeline.run import LOGS, Run, Summary, bar, console, drop_torn_checkpoints, fit_report
from dreamgym.pipeline.user_logs import read_user_logs
from dreamgym.rl.policy import STATE_CONTEXT

ANNOTATED = "annotated.jsonl.xz"


def shipped(name: str) -> Path:
    """A data file that comes with the package."""
    return Path(str(resources.files("dreamgym.data").joinpath(name)))


def shipped_base(level: str) -> Path:
    """The language model of a level's kind of logs: cooking in one room, or in several."""
    return shipped("base-rooms" if level in ("hard", "mixed") else "base")


def fit_config(o: Optimisation, seed: int) -> FitConfig:
    return FitConfig(learning_rate=o.learning_rate, epochs=o.epochs, row_length=o.row_length, rows=o.rows, seed=seed)


def collect(run: Run) -> Summary:
    """Logs into the run: shipped ones, a user's file (checked line by line), newly recorded, or an earlier run's with what it met."""
    config, adapter = run.config, load_adapter(run.config.env)
    counter, met = RealSteps(), met_before(run) if config.continued else None
    if met is None:
        base_path(run)  # a base that is not there is told before hours of recording
    if met:
        episodes = met.episodes
        refuse_evaluated(episodes, config)
    elif config.logs == "collect":
        episodes = _record(run, adapter, counter)
    else:
        path = shipped(f"logs-{_level(config)}.jsonl.xz") if config.logs == "shipped" else Path(config.logs)
        if config.logs == "shipped" and not path.exists():
            raise ConfigError(f"logs: none are shipped for {config.env}; set logs to 'collect' or to a file of episodes")
        if config.logs == "shipped":
            episodes = shipped_logs(path, adapter)
        else:
            episodes = read_user_logs(path, lambda: _evaluated(config, adapter), getattr(adapter, "wrong_name", None))
    if not episodes:
        raise DataError(f"logs: {config.env} recorded no episode; its adapter has no explorers or no training tasks")
    failed = [e.id for e in episodes if not e.valid]
    if failed:  # what a failing environment shows is not what it does
        console.print(f"  [yellow]{len(failed)} of {len(episodes)} episodes are invalid and left out[/yellow] (the first: {failed[0]})")
        episodes = [e for e in episodes if e.valid]
    if not episodes:
        raise DataError(f"logs: none of {len(failed)} episodes of {config.env} is valid; what was raised there is told above")
    write_episodes(run.path(LOGS), episodes)
    steps = counter.total or sum(len(e.steps) for e in episodes)
    if met:
        steps = met.logged_steps
    elif config.logs == "shipped":
        steps = shipped_steps(_level(config))
    return {
        "episodes": len(episodes),
        "tasks": len({e.task.id for e in episodes}),
        "transitions": sum(len(e.steps) for e in episodes),
        "successes": len(successes(episodes)),
        "real_steps": steps,
        "counts": counts(episodes),
        **({"invalid_left_out": len(failed)} if failed else {}),
        **({"new_episodes": len(met.new), "earlier_real_steps": met.learned_steps} if met else {}),
        **({"new": met.new, "policy_fingerprint": met.fingerprint} if met else {}),
    }


def _level(config: RunConfig) -> str:
    return config.env.removeprefix("textworld/").partition("/")[0]


def shipped_logs(path: Path, adapter: Adapter) -> list[Episode]:
    """The logs of a level, as its adapter's view would have recorded them."""
    episodes = load_logs([path])
    if getattr(adapter, "view", "carried") != "current":
        return episodes
    from dreamgym.envs.textworld.view import projected

    return [projected(e) for e in episodes]


def shipped_steps(level: str) -> int:
    """Real steps that recording the shipped logs took, re-played prefixes of counterfactuals included."""
    meta = read_json(shipped("logs.json"))[level]
    assert isinstance(meta, dict)
    return int(meta["real_steps"])


def _evaluated(config: RunConfig, adapter: Adapter) -> dict[str, str]:
    """Task id -> panel of every task that the run will evaluate, audit or probe on."""
    e = config.evaluation
    limits: dict[Panel, int] = {e.panel: max(e.games, e.audit_games)}
    if config.rl.probe_every or config.s2r.probe_every:
        limits["probe"] = max(e.probe_games, limits.get("probe", 0))
    return {t.id: panel for panel, limit in limits.items() for t in adapter.tasks(panel, limit)}


def refuse_evaluated(episodes: Sequence[Episode], config: RunConfig) -> None:
    """Logs that were fine for the run that had them may hold what this one evaluates on. Raises ``PanelLeakError``."""
    evaluated = _evaluated(config, load_adapter(config.env))
    for e in episodes:
        if panel := evaluated.get(e.task.id):
            raise PanelLeakError(f"episode {e.id}: its task {e.task.id} is of the panel {panel}, which this run evaluates on; evaluate on"
                                 " the games that the run before did, or on another panel")  # fmt: skip


def _record(run: Run, adapter: Adapter, counter: RealSteps) -> list[Episode]:
    """New logs. A recording that was killed begins again; the real steps that it took stay counted."""
    episodes: list[Episode] = []
    counter.ledger = run.path("real_steps.txt")
    counter.recall()
    with bar() as progress:
        task = progress.add_task("recording episodes", total=None)
        for e in adapter.collect(counter, run.config.collect_tasks, run.config.seed):
            episodes.append(e)
            progress.advance(task)
    counter.settle()
    counter.ledger = None
    return episodes


def annotate_logs(run: Run) -> Summary:
    """Reasoning for every logged step: from the environment's teacher, the generic one, or an LLM behind a server."""
    kind = run.config.experience.teacher
    found: Summary = {}
    if kind == "endpoint":
        annotated, found = _taught(run)
    else:
        teacher = load_adapter(run.config.env).teacher if kind == "own" else GenericTeacher()
        annotated = list(annotate(read_episodes(run.path(LOGS)), teacher))
    write_episodes(run.path(ANNOTATED), annotated)
    words = sum(len(t.reasoning.split()) for e in annotated for t in e.steps)
    return {"transitions": sum(len(e.steps) for e in annotated), "teacher": kind, "reasoning_words": words, **found}


def _taught(run: Run) -> tuple[list[Episode], Summary]:
    """Annotations of an LLM; its cost is estimated before it starts. Episodes without a usable one are left out, and counted."""
    config = run.config.experience.annotator
    assert config is not None, "the configuration refuses teacher: endpoint without it"
    if run.config.continued:
        take_annotations(run)
    episodes = list(read_episodes(run.path(LOGS)))
    cost = estimate(unexplained(episodes, run.folder), config)
    usd = "" if cost.usd is None else f", about ${cost.usd:.2f}"
    tokens = f"{cost.tokens_in:,} tokens in and {cost.tokens_out:,} out{usd}, if every first reply is usable and as long as it may be"
    console.print(f"  {cost.episodes} episodes, {cost.steps} steps: about {tokens}")
    with bar() as progress:
        task = progress.add_task("annotating episodes", total=len(episodes))
        report = lambda done, total: progress.update(task, completed=done)  # noqa: E731
        annotated = list(teach(episodes, config, server(config.server), run.folder, report))
    if not annotated:
        raise DataError(f"{run.path(ANNOTATIONS)}: no episode has a usable annotation; its lines say why")
    return annotated, summary(run.folder, config)


def base_model(run: Run) -> Summary:
    """Where both models start: the shipped language model, a new one of these logs' text, a pretrained one, or an earlier run."""
    config = run.config
    if config.continued:
        return {"path": config.continued.run, "trained": False}
    if config.base != "tiny":
        return {"path": base_path(run), "trained": False}
    episodes = load_logs([run.path(LOGS)])
    drop_torn_checkpoints(run.path("base/checkpoints"))
    with bar() as progress:
        lm = train_base(
            episodes,
            tasks_of(episodes),
            fit_config(config.pretrain, config.seed),
            run.path("base"),
            fit_report(progress, "base language model"),
        )
    return {"path": str(run.path("base")), "trained": True, "parameters": lm.parameters}


def base_path(run: Run) -> str:
    if run.config.base == "tiny":
        return str(run.path("base"))
    if run.config.base != "shipped":
        return run.config.base
    path = shipped_base(_level(run.config))
    if not run.config.env.startswith("textworld/") or not path.exists():
        raise ConfigError(f"base: none is shipped for {run.config.env}; set base to 'tiny' (trained on the logs' text) or to a causal LM")
    return str(path)


def train_experience_model(run: Run) -> Summary:
    """Supervised fine-tuning of the local experience model (Eq. 5); nothing where a server plays the environment."""
    config = run.config
    if config.experience.endpoint:
        played_by = config.experience.endpoint.server
        return {"endpoint": played_by.base_url, "model": played_by.model, **config.experience.prompt.model_dump()}
    episodes = load_logs([run.path(ANNOTATED)])
    drop_torn_checkpoints(run.path("experience/checkpoints"))
    pretrained = config.experience.pretrained
    if pretrained:
        from dreamgym.pipeline.chat_sft import train_chat  # the extra [sft]

        with bar() as progress:
            report = fit_report(progress, "experience model")
            tasks, retrieval = tasks_of(episodes), logged(run)
            n = train_chat(episodes, tasks, prompt_config(config), pretrained, run.path("experience"), retrieval, config.seed, report)
        return {"model": pretrained.model, "lora": pretrained.lora is not None, "conversations": n, **config.experience.prompt.model_dump()}
    tasks, folder, retrieval = tasks_of(episodes), run.path("experience"), logged(run)
    fit, found = fit_config(config.experience.fit, config.seed), Summary()
    with bar() as progress:
        report = fit_report(progress, "experience model")
        writing, prompt = config.curriculum.writing if config.curriculum.synthetic else 0, prompt_config(config)
        if config.continued:
            read = lesson(run, episodes, tasks, retrieval, _asked(progress))
            before, mistakes = Earlier(run).experience, config.continued.mistakes
            lm = train_further(before, read, mistakes, tasks, prompt, fit, folder, retrieval, report, writing)
            found = {"new_steps": read.new_steps, "wrong_before": read.wrong}
        else:
            lm = train_experience(base_path(run), episodes, tasks, prompt, fit, folder, retrieval, report, writing=writing)
    return {"parameters": lm.parameters, **found, **config.experience.prompt.model_dump()}


def _asked(progress: Progress) -> Callable[[int, int, float], None]:
    task = progress.add_task("the earlier experience model on new steps", total=None)
    return lambda done, total, wrong: progress.update(task, completed=done, total=total, visible=done < total)


def warm_start_policy(run: Run) -> Summary:
    """The policy before any reinforcement learning: the limited demonstrations imitated, or Early Experience beside them (``sft.method``),
    or where an earlier run's ended."""
    config = run.config
    if config.continued:
        return {"from": str(take_policy(run, run.path("sft")))}
    demos = demonstrations(load_logs([run.path(LOGS)]), config.sft.demonstrations)
    _check_actions(base_path(run), demos, config)
    how, found, early = config.sft, Summary(), config.sft.method != "imitation"
    imitation, context = (run.path("imitation"), STATE_CONTEXT) if early else (run.path("sft"), context_of(config))
    drop_torn_checkpoints(imitation / "checkpoints")
    with bar() as progress:
        fit, report = fit_config(how.fit, config.seed), fit_report(progress, "warm start")
        lm = warm_start(base_path(run), demos, fit, imitation, report, context, config.policy.lora)
    if early:
        _, found = early_start(run, how.method, base_path(run), lm, demos, fit, run.path("sft"), how.alternatives)
        shutil.rmtree(imitation)
    return {"demonstrations": len(demos), "steps": sum(len(e.transitions) for e in demos), **found}


def _check_actions(base: str, demos: Sequence[Episode], config: RunConfig) -> None:
    """A demonstrated action that the policy has not the tokens for would be taught and never said."""
    from transformers import AutoTokenizer

    limit, context, tokenizer = tokens_of(config), context_of(config), AutoTokenizer.from_pretrained(base)
    for action in sorted({t.action for e in demos for t in e.transitions}):
        tokens = len(tokenizer.encode(context.reply(action), add_special_tokens=False, split_special_tokens=True)) + 1
        if tokens > limit:
            raise ConfigError(f"policy.tokens: the demonstrated action {action!r} has {tokens} tokens with its end; raise policy.tokens"
                              f" from {limit} to {tokens} or more")  # fmt: skip


def demonstrations(episodes: Sequence[Episode], limit: int | None) -> list[Episode]:
    """Successful episodes for the warm start: the expert's (None), all (0), or the first ``limit``."""
    won = successes(episodes)
    if limit is None:
        won = [e for e in won if e.behaviour == "expert"] or won
    elif limit:
        won = won[:limit]
    if not won:
        raise DataError("the logs hold no successful episode to start the policy from; add demonstrations")
    return won


STAGES: dict[str, Callable[[Run], Summary]] = {
    "collect": collect,
    "annotate": annotate_logs,
    "base": base_model,
    "train-experience": train_experience_model,
    "warm-start": warm_start_policy,
    "eval-sft": lambda run: evaluate(run, "sft"),
    "train": train_policy,
    "eval-policy": lambda run: evaluate(run, "policy"),
    "audit": audit,
}
"""In the order in which they can run."""
AFTER: dict[str, Callable[[Run], Summary]] = {"sim-to-real": sim_to_real, "eval-s2r": lambda run: evaluate(run, "s2r")}
"""On request, after the others."""
