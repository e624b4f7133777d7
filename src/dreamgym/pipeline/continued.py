"""A run that continues an earlier one with what its policy met in the real environment (co-evolution, as in arXiv 2504.21024).

dreamgym train --run runs/mine --stages dream,real
dreamgym train --run runs/next --config runs/mine/config.yaml continued.run=runs/mine --stages dream,real

The policy goes on from where it ended, its real episodes of learning join the logs (and so world sheets, replay buffer and
precedents), and the experience model reads them: above all those in which it would have answered a step wrongly. Episodes of
evaluations and probes never come in: they are not even in the files that are read.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamgym.core.errors import ConfigError, DataError
from dreamgym.core.files import read_json
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Task
from dreamgym.experience.model import LocalExperienceModel
from dreamgym.experience.sft import requests_of
from dreamgym.experience.teach import ANNOTATIONS
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.config import RunConfig, load_config
from dreamgym.pipeline.logs import load_logs
from dreamgym.pipeline.player import prompt_config
from dreamgym.pipeline.run import LOGS, Run, bar
from dreamgym.replay.contract import Retrieval

BATCH = 256
"""Steps that the earlier experience model is asked about at once."""


class Earlier:
    """The run that another continues, as its folder has it. Raises ``ConfigError`` where it is none, or another kind of run."""

    def __init__(self, run: Run) -> None:
        assert run.config.continued is not None
        self.folder = Path(run.config.continued.run)
        saved = self.folder / "config.yaml"
        if not saved.exists():
            raise ConfigError(f"continued.run: {self.folder} is no run directory (it has no config.yaml)")
        self.config = load_config(saved)
        for name, own, other in _same(run.config, self.config):
            if own != other:
                raise ConfigError(f"{name} is another one in {saved}; a run continues one of the same environment, prompts and policy")
        self.experience = self.folder / "experience"
        self.policy = self.folder / ("s2r" if self._done("sim-to-real") else "policy")
        """Where its policy ended."""

    def real_episodes(self, known: Sequence[Episode]) -> list[Episode]:
        """Valid real episodes from which its policy learned, under names that are not among ``known``."""
        names = {e.id for e in known}
        for_real = {"policy_run": self._done("train") and self.config.rl.environment == "real", "s2r_run": self._done("sim-to-real")}
        files = [self.folder / work / "episodes.jsonl" for work, done in for_real.items() if done]
        found: list[Episode] = []
        for e in (e for path in files if path.stat().st_size for e in load_logs([path])):
            name = e.id
            while name in names:
                name += "'"
            names.add(name)
            if e.valid and e.steps:
                found.append(e.model_copy(update={"id": name}))
        if not found:
            again = f"dreamgym train --run {self.folder} --stages dream,real"
            raise DataError(f"continued.run: {self.folder} has learned nothing in the real environment yet; run: {again}")
        return found

    def real_steps(self) -> int:
        """All that its logs, its learning and its probes took."""
        stages = [read_json(self._marker(name)) for name in ("collect", "train", "sim-to-real") if self._done(name)]
        return sum(int(str(s.get(key, 0))) for s in stages for key in ("real_steps", "rl_real_steps", "probe_real_steps"))

    def _done(self, stage: str) -> bool:
        return self._marker(stage).exists()

    def _marker(self, stage: str) -> Path:
        return self.folder / "stages" / f"{stage}.json"


def _same(own: RunConfig, other: RunConfig) -> list[tuple[str, object, object]]:
    """What the models of both runs must agree in."""
    return [
        ("env", own.env, other.env),
        ("experience.prompt", own.experience.prompt, other.experience.prompt),
        ("experience.endpoint", own.experience.endpoint is None, other.experience.endpoint is None),
        ("experience.pretrained", own.experience.pretrained is None, other.experience.pretrained is None),
        ("policy", own.policy, other.policy),
    ]


class Met(NamedTuple):
    """What an earlier run leaves: its logs with what its policy met for real at their end."""

    episodes: list[Episode]
    new: int
    """How many of them, the last ones, its policy learned from."""
    real_steps: int
    """What all of it took, probes included."""


def met_before(run: Run) -> Met:
    """The earlier run's logs, and the real episodes that its policy learned from."""
    earlier = Earlier(run)
    logs = load_logs([earlier.folder / LOGS])
    new = earlier.real_episodes(logs)
    lines = earlier.folder / ANNOTATIONS
    if lines.exists():  # what an LLM has explained before is not paid for again
        shutil.copy(lines, run.path(ANNOTATIONS))
    return Met([*logs, *new], len(new), earlier.real_steps())


class Lesson(NamedTuple):
    """What a local experience model reads to go on."""

    episodes: list[Episode]
    """One that is to be read several times is there as often."""
    new_steps: int
    wrong: int
    """Of the new steps, how many the earlier experience model would have answered wrongly or not at all."""


def lesson(run: Run, annotated: Sequence[Episode], tasks: dict[str, Task], retrieval: Retrieval) -> Lesson:
    """The new episodes, those with a wrong step ``continued.mistakes`` times, and old ones drawn at random, with
    ``continued.rehearsal`` times as many steps as all of these."""
    how = run.config.continued
    assert how is not None
    n = int(str(run.summary("collect")["new_episodes"]))
    names = {e.id for e in load_logs([run.path(LOGS)])[-n:]}
    new = [e for e in annotated if e.id in names]
    wrong = _wrong_steps(run, new, tasks, retrieval)
    chosen = [e for e in new for _ in range(how.mistakes if wrong.get(e.id) else 1)]
    old = [e for e in annotated if e.id not in names]
    wanted = how.rehearsal * sum(len(e.steps) for e in chosen)
    for i in keyed_rng(run.config.seed, "rehearsal").permutation(len(old)):
        if wanted <= 0:
            break
        chosen.append(old[i])
        wanted -= len(old[i].steps)
    return Lesson(chosen, sum(len(e.steps) for e in new), sum(wrong.values()))


def _wrong_steps(run: Run, new: Sequence[Episode], tasks: dict[str, Task], retrieval: Retrieval) -> dict[str, int]:
    """Episode -> steps for which the earlier experience model has no usable reply, or says another change or end than what happened."""
    model = LocalExperienceModel(LocalLM.load(Earlier(run).experience), prompt_config(run.config), retrieval)
    asked = [(e.id, request, t) for e in new for request, t in requests_of(e, tasks[e.task.id])]
    wrong: dict[str, int] = {}
    with bar() as progress:
        task = progress.add_task("the earlier experience model on the new steps", total=len(asked))
        for i in range(0, len(asked), BATCH):
            part = asked[i : i + BATCH]
            for (name, _, t), said in zip(part, model.predict([request for _, request, _ in part]), strict=True):
                if said.reply is None or (said.reply.change, said.reply.outcome) != (t.change, t.outcome):
                    wrong[name] = wrong.get(name, 0) + 1
            progress.update(task, completed=i + len(part))
    return wrong
