"""A run that continues an earlier one with what its policy met in the real environment (co-evolution, as in arXiv 2504.21024).

dreamgym train --run runs/mine --stages dream,real
dreamgym train --run runs/next --config runs/mine/config.yaml continued.run=runs/mine seed=1 --stages dream,real

The policy goes on from where it ended, its real episodes of learning join the logs (and so world sheets, replay buffer and
precedents), and the experience model reads them: above all those in which it would have answered a step wrongly. Episodes of
evaluations and probes never come in: they are not even in the files that are read.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamgym.core.errors import ConfigError, DataError
from dreamgym.core.files import read_json, write_json
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Task
from dreamgym.curriculum.writing import SEEDS, writing_trees
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.experience.sft import RepeatConfig, requests_of, sft_trees, target_texts
from dreamgym.experience.teach import ANNOTATIONS
from dreamgym.lm.fit import FitConfig, fit
from dreamgym.lm.local import LocalLM
from dreamgym.lm.words import add_whole_words
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.learn import WHOLE_WORD, Report, quiet
from dreamgym.pipeline.logs import load_logs
from dreamgym.pipeline.player import prompt_config
from dreamgym.pipeline.rl_run import fingerprint
from dreamgym.pipeline.run import LOGS, Run, stage_file
from dreamgym.replay.contract import Retrieval

BATCH = 256
"""Steps that the earlier experience model is asked about at once."""
ONCE = RepeatConfig(won=1)
"""Wins are rare in logs of explorers and shown often there; a policy that has learned wins every few steps."""


class Earlier:
    """The run that another continues, as its folder has it. Raises ``ConfigError`` where it is none that can be continued."""

    def __init__(self, run: Run) -> None:
        assert run.config.continued is not None
        self.folder = Path(run.config.continued.run)
        saved = self.folder / "config.yaml"
        if not saved.exists():
            raise ConfigError(f"continued.run: {self.folder} is no run directory (it has no config.yaml)")
        if self.folder.resolve() == run.folder.resolve():
            raise ConfigError(f"continued.run: {self.folder} is this run itself; give the new one another --run")
        self.config = load_config(saved)
        for name, own, other in _same(run.config, self.config):
            if own != other:
                raise ConfigError(f"{name} is another one in {saved}; a run continues one of the same environment, prompts and policy")
        told = run.config.experience
        if run.config.curriculum.synthetic and not self.config.curriculum.synthetic and not (told.endpoint or told.pretrained):
            raise ConfigError(
                f"curriculum.synthetic: the experience model of {self.folder} has not learned to write tasks; leave it 0, or train the"
                " earlier run with it"
            )
        if run.config.seed == self.config.seed:
            raise ConfigError(f"seed: {saved} has {self.config.seed} too, so the same tasks would come first; give another one")
        for stage, work in (("train", "policy_run"), ("sim-to-real", "s2r_run")):
            if not self._done(stage) and (stage == "train" or (self.folder / work).exists()):
                raise ConfigError(f"continued.run: the stage {stage} has not finished in {self.folder}; let it finish first")
        self.experience = self.folder / "experience"
        self.policy = self.folder / ("s2r" if self._done("sim-to-real") else "policy")
        """Where its policy ended."""

    def real_episodes(self, known: Sequence[Episode]) -> list[Episode]:
        """Valid real episodes from which its policy learned, under names that are not among ``known``."""
        names = {e.id for e in known}
        for_real = {"policy_run": self.config.rl.environment == "real", "s2r_run": self._done("sim-to-real")}
        files = [self.folder / work / "episodes.jsonl" for work, learned in for_real.items() if learned]
        found: list[Episode] = []
        for e in (e for path in files if path.exists() and path.stat().st_size for e in load_logs([path])):
            name = e.id
            while name in names:
                name += "'"
            names.add(name)
            if e.valid and e.steps:
                found.append(e.model_copy(update={"id": name}))
        if not found and files:
            raise DataError(f"continued.run: {', '.join(map(str, files))}: no valid episode in there; was the real budget too small?")
        if not found:
            again = f"dreamgym train --run {self.folder} --stages dream,real"
            raise DataError(f"continued.run: {self.folder} has learned nothing in the real environment yet; run: {again}")
        return found

    def learned_steps(self) -> int:
        """Real steps of its learning and its probes, and of the runs that it continued."""
        names = filter(self._done, ("collect", "warm-start", "train", "sim-to-real"))
        stages = [read_json(stage_file(self.folder, name)) for name in names]
        keys = ("earlier_real_steps", "learning_real_steps", "rl_real_steps", "probe_real_steps")
        return sum(int(str(s.get(key, 0))) for s in stages for key in keys)

    def logged_steps(self) -> int:
        """Real steps that recording its first logs took."""
        return int(str(read_json(stage_file(self.folder, "collect"))["real_steps"]))

    def _done(self, stage: str) -> bool:
        return stage_file(self.folder, stage).exists()


def _same(own: RunConfig, other: RunConfig) -> list[tuple[str, object, object]]:
    """What the models of both runs must agree in."""
    a, b = own.experience.annotator, other.experience.annotator
    return [
        ("env", own.env, other.env),
        ("experience.prompt", own.experience.prompt, other.experience.prompt),
        ("experience.teacher", own.experience.teacher, other.experience.teacher),
        ("experience.annotator", a and (a.kind, a.server.model), b and (b.kind, b.server.model)),
        ("experience.endpoint", own.experience.endpoint is None, other.experience.endpoint is None),
        ("experience.pretrained", own.experience.pretrained is None, other.experience.pretrained is None),
        ("policy", own.policy, other.policy),
        ("sft.method", own.sft.method == "self_reflection", other.sft.method == "self_reflection"),  # how the policy is asked
    ]


class Met(NamedTuple):
    """What an earlier run leaves: its logs with what its policy met for real at their end."""

    episodes: list[Episode]
    new: list[str]
    """Names of those that its policy learned from."""
    logged_steps: int
    """Real steps that recording the first logs took."""
    learned_steps: int
    """Real steps of all learning and probes since."""
    fingerprint: str | None
    """Of the policy that learned from them."""


def met_before(run: Run) -> Met:
    """The earlier run's logs, and the real episodes that its policy learned from."""
    earlier = Earlier(run)
    logs = load_logs([earlier.folder / LOGS])
    new = earlier.real_episodes(logs)
    return Met([*logs, *new], [e.id for e in new], earlier.logged_steps(), earlier.learned_steps(), fingerprint(earlier.policy))


def take_annotations(run: Run) -> None:
    """What an LLM has explained before is not paid for again."""
    lines = Earlier(run).folder / ANNOTATIONS
    if lines.exists() and not run.path(ANNOTATIONS).exists():
        shutil.copy(lines, run.path(ANNOTATIONS))


def take_policy(run: Run, folder: Path) -> Path:
    """The earlier run's policy into ``folder``. Raises ``DataError`` where it has learned on since its episodes were collected."""
    policy, collected = Earlier(run).policy, run.summary("collect")
    if fingerprint(policy) != collected["policy_fingerprint"]:
        raise DataError(
            f"{policy}: another policy than when {run.folder} took the run's episodes (it has learned on since); delete {run.folder}"
            " and begin it anew"
        )
    shutil.copytree(policy, folder, dirs_exist_ok=True)
    return policy


class Lesson(NamedTuple):
    """What a local experience model reads to go on."""

    episodes: list[Episode]
    """The new ones, and old ones beside them."""
    mistaken: list[Episode]
    """New ones in which the earlier experience model would have answered a step wrongly, or not at all."""
    new_steps: int
    wrong: int
    """Of the new steps, how many these are."""


def lesson(run: Run, annotated: Sequence[Episode], tasks: dict[str, Task], retrieval: Retrieval, report: Report = quiet) -> Lesson:
    """The new episodes, and old ones drawn at random with ``continued.rehearsal`` times as many steps as are read of the new ones.

    Which steps were wrong is asked once and kept in ``lesson.json``: under the sheets and the buffer that hold the new episodes, never
    the own one.
    """
    how = run.config.continued
    assert how is not None
    names = set(run.summary("collect")["new"])  # type: ignore[call-overload]
    new = [e for e in annotated if e.id in names]
    if not new:
        raise DataError(f"{run.folder}: none of the {len(names)} new episodes has an annotation, so there is nothing to learn from them")
    kept = run.path("lesson.json")
    if not kept.exists():
        model = LocalExperienceModel(LocalLM.load(Earlier(run).experience), prompt_config(run.config), retrieval)
        write_json(kept, {"wrong": _wrong_steps(model, new, tasks, report)})
    wrong: dict[str, int] = dict(read_json(kept)["wrong"])  # type: ignore[call-overload]
    mistaken = [e for e in new if wrong.get(e.id)]
    read = sum(len(e.steps) for e in new) + (how.mistakes - 1) * sum(len(e.steps) for e in mistaken)
    old, wanted, again = [e for e in annotated if e.id not in names], how.rehearsal * read, list[Episode]()
    for i in keyed_rng(run.config.seed, "rehearsal").permutation(len(old)):
        if wanted <= 0:
            break
        again.append(old[i])
        wanted -= len(old[i].steps)
    return Lesson([*new, *again], mistaken, sum(len(e.steps) for e in new), sum(wrong.values()))


def _wrong_steps(model: LocalExperienceModel, new: Sequence[Episode], tasks: dict[str, Task], report: Report) -> dict[str, int]:
    """Episode -> steps for which the model has no usable reply, or says another change or end than what happened."""
    asked = [(e.id, request, t) for e in new for request, t in requests_of(e, tasks[e.task.id])]
    wrong: dict[str, int] = {}
    for i in range(0, len(asked), BATCH):
        part = asked[i : i + BATCH]
        for (name, _, t), said in zip(part, model.predict([request for _, request, _ in part]), strict=True):
            if said.reply is None or (said.reply.change, said.reply.outcome) != (t.change, t.outcome):
                wrong[name] = wrong.get(name, 0) + 1
        report(i + len(part), len(asked), sum(wrong.values()) / (i + len(part)))
    return wrong


def train_further(
    experience: Path,
    read: Lesson,
    mistakes: int,
    tasks: dict[str, Task],
    prompt: ExperienceConfig,
    config: FitConfig,
    folder: Path,
    retrieval: Retrieval,
    report: Report = quiet,
    writing: int = 0,
) -> LocalLM:
    """An experience model that goes on from ``experience``: an epoch of the lesson (more where ``config`` says so), its mistaken
    episodes ``mistakes`` times, each time with retrievals of their own; where it is to go on ``writing`` tasks, that too."""
    lm = LocalLM.load(experience)
    add_whole_words(lm, target_texts(read.episodes, prompt.reasoning), WHOLE_WORD)
    trees = sft_trees(lm, read.episodes, tasks, retrieval, prompt, ONCE, config.seed)
    for n in range(1, mistakes if read.mistaken else 1):
        trees += sft_trees(lm, read.mistaken, tasks, retrieval, prompt, ONCE, config.seed + n)
    if writing:
        trees += writing_trees(lm, list(tasks.values()), SEEDS, writing, config.seed)
    fit(lm.model, trees, config.model_copy(update={"epochs": max(1.0, config.epochs)}), folder / "checkpoints", report)
    lm.save(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return lm
