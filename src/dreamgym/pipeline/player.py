"""Who plays the environment in a run: the experience model that its configuration names, and its second opinion.

    model = experience_model(run, logged(run))

A local model trained here, a pretrained chat LLM fine-tuned here, or a server; optional extras are imported where they are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from dreamgym.core.errors import ConfigError
from dreamgym.core.types import Episode, Feat, Task
from dreamgym.curriculum.asking import ChatWriter
from dreamgym.curriculum.generator import Achieved, TaskGenerator
from dreamgym.curriculum.writing import LocalWriter, Writer
from dreamgym.endpoint.config import Chat, EndpointConfig
from dreamgym.envs.adapter import Adapter, load_object
from dreamgym.experience.cautious import Cautious
from dreamgym.experience.endpoint import EndpointExperienceModel
from dreamgym.experience.fidelity import Draw, local_draws
from dreamgym.experience.model import ExperienceModel, LocalExperienceModel
from dreamgym.experience.precedent import Precedents, precedents
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.experience.second_opinion import JudgeOfSuccess, SecondOpinion, Verifier, programmatic
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.config import Curriculum, Opinion, Remote, RunConfig
from dreamgym.pipeline.logs import load_logs
from dreamgym.pipeline.run import LOGS, Run, console
from dreamgym.replay.contract import Retrieval


def prompt_config(config: RunConfig) -> ExperienceConfig:
    p = config.experience.prompt
    return ExperienceConfig(**p.model_dump())


def task_writer(model: ExperienceModel) -> Writer:
    """Who writes tasks: the weights of the experience model (Eq. 6), whatever it is wrapped in."""
    player = _inner(model)
    if isinstance(player, EndpointExperienceModel):
        return ChatWriter(player.endpoint)
    assert isinstance(player, LocalExperienceModel)
    return LocalWriter(player.lm)


def task_generator(
    model: ExperienceModel,
    adapter: Adapter,
    tasks: Sequence[Task],
    curriculum: Curriculum,
    seed: int,
    clusters: Mapping[str, int] | None = None,
) -> tuple[TaskGenerator, Achieved | None]:
    """Who writes tasks in a run, and who tells what failed episodes achieved (None without hindsight).

    Nothing is written that the environment keeps for evaluation, where its adapter says so (``allowed(instruction)``), nor what it has
    in other words (``canonical(instruction)``); a feat that takes longer than an episode may be is none. ``clusters``: of the tasks, where
    a cluster is a group.
    """

    def achieved(task: Task, episode: Episode) -> Feat | None:
        feat: Feat | None = adapter.achieved(task, episode)  # type: ignore[attr-defined]
        return feat if feat and len(feat.solution) <= adapter.cap else None

    allowed: Callable[[str], bool] = getattr(adapter, "allowed", lambda instruction: True)
    canonical: Callable[[str], str] | None = getattr(adapter, "canonical", None)
    generator = TaskGenerator(task_writer(model), tasks, curriculum.generator, seed, allowed, canonical, clusters)
    return generator, achieved if curriculum.hindsight else None


def server(config: EndpointConfig) -> Chat:
    """A client of the server."""
    from dreamgym.endpoint.client import Endpoint  # the extra [endpoint]

    return Endpoint(config)


def experience_model(run: Run, retrieval: Retrieval, tasks_seen: bool = False) -> ExperienceModel:
    """The experience model that reads ``retrieval``, its successes verified where the run wants that."""
    config = prompt_config(run.config).model_copy(update={"same_task": tasks_seen})
    opinion, unsure = run.config.experience.second_opinion, run.config.experience.uncertainty
    decided = opinion is not None and opinion.decides
    wins = precedents(load_logs([run.path(LOGS)])) if run.config.experience.precedent and not decided else None
    if wins:
        console.print(f"  a success needs a precedent ({wins.successes} logged, {wins.covered:.0%} of a form that won in another task)")
    model = _player(run, config, retrieval, wins)
    if unsure:
        model = Cautious(model, partial(_draws_under, model), retrieval, unsure.samples, unsure.above)
    return SecondOpinion(model, _verifier(opinion), opinion.decides) if opinion else model


def _player(run: Run, config: ExperienceConfig, retrieval: Retrieval, wins: Precedents | None) -> ExperienceModel:
    """Who plays the environment: a server, a chat model fine-tuned here, or the local model."""
    remote, pretrained = run.config.experience.endpoint, run.config.experience.pretrained
    if remote:
        return EndpointExperienceModel(server(remote.server), config, remote.reply, retrieval, wins)
    if pretrained:
        from dreamgym.experience.inprocess import LocalChat

        chat = LocalChat.load(run.path("experience"), pretrained.generation_batch)
        return EndpointExperienceModel(chat, config, pretrained.reply, retrieval, wins)
    return LocalExperienceModel(LocalLM.load(run.path("experience")), config, retrieval, wins)


def _verifier(opinion: Opinion) -> Verifier:
    if opinion.judge:
        return JudgeOfSuccess(server(opinion.judge))
    check = load_object(str(opinion.verifier), "experience.second_opinion.verifier")
    if not callable(check):
        raise ConfigError(f"experience.second_opinion.verifier: {opinion.verifier!r} is no function")
    return programmatic(check)


def _inner(model: ExperienceModel) -> ExperienceModel:
    """The experience model itself, without second opinion and caution."""
    return _inner(model.model) if isinstance(model, SecondOpinion | Cautious) else model


def _draws_under(model: ExperienceModel, retrieval: Retrieval) -> Draw:
    player = _inner(model)
    assert isinstance(player, LocalExperienceModel | EndpointExperienceModel)
    return local_draws(player.lm, player.config, retrieval, player.wins) if isinstance(player, LocalExperienceModel) else player.draw


def draws(model: ExperienceModel, retrieval: Retrieval) -> Draw:
    """Further predictions of ``model`` at temperature 1, its successes verified where they are."""
    found = _draws_under(model, retrieval)
    return model.draws(found) if isinstance(model, SecondOpinion) else found


def remote_costs(model: ExperienceModel | None, remote: Remote, spent: dict[str, float]) -> dict[str, object]:
    """US dollars of the whole stage, and why replies were not usable (since the last start)."""
    usd = remote.server.usd(spent.get("experience_tokens_in", 0.0), spent.get("experience_tokens_out", 0.0))
    player = _inner(model) if model else None
    return {"usd": usd, "unusable_replies": dict(player.reasons) if isinstance(player, EndpointExperienceModel) else {}}
