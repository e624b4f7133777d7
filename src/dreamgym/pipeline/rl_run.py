"""A whole run of policy learning, in the dream or (the control) in the real environment: tasks, rollouts, updates, probes, checkpoints.

Killed at any moment it goes on at the last finished iteration. The run directory's stage and the benchmark grid use it alike. With
several ``ranks`` the dream's groups are shared out; the real environment is the first one's, and so are decisions and files.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import BudgetError, DataError, TrainingError
from dreamgym.core.files import episode_line, write_atomic
from dreamgym.core.types import Episode, Task
from dreamgym.curriculum.config import SamplerConfig
from dreamgym.curriculum.generator import Achieved, TaskGenerator
from dreamgym.curriculum.sampler import TaskSampler, ValueSampler
from dreamgym.curriculum.values import progress_of
from dreamgym.dream import SheetBook
from dreamgym.envs.adapter import Adapter
from dreamgym.experience.model import ExperienceModel
from dreamgym.lm.local import LocalLM
from dreamgym.pipeline.new_tasks import NewTasks
from dreamgym.pipeline.play import play_dream, play_real, real_rate, seats_for
from dreamgym.replay.contract import Replay
from dreamgym.rl.config import RLConfig
from dreamgym.rl.context import Context
from dreamgym.rl.monitors import alarms
from dreamgym.rl.policy import ACTION_TOKENS, STATE_CONTEXT, Policy
from dreamgym.rl.ranks import ALONE, Ranks
from dreamgym.rl.rollout import Rollout, Seat
from dreamgym.rl.trainer import CRITIC, Trainer

CHOSEN, MARK = ".policy-new", "iteration"
"""The policy of the last probe, where that is the best, until the checkpoint of its iteration is there; and which iteration that is."""


class RLRun:
    """One run in the dream or (the control) in the real environment, checkpointed after every iteration."""

    def __init__(
        self,
        start: str | Path,
        config: RLConfig,
        tasks: dict[str, Task],
        adapter: Adapter,
        folder: Path,
        model: ExperienceModel | None,
        replay: Replay | None,
        counter: RealSteps,
        seed: int = 0,
        context: Context = STATE_CONTEXT,
        action_tokens: int = ACTION_TOKENS,
        ranks: Ranks = ALONE,
        choose: SamplerConfig | None = None,
        generator: TaskGenerator | None = None,
        achieved: Achieved | None = None,
        clusters: Mapping[str, int] | None = None,
    ) -> None:
        self.ranks = ranks
        self.seed, self.context, self.action_tokens = seed, context, action_tokens
        self.config, self.adapter, self.folder, self.counter = config, adapter, folder, counter
        self.model, self.replay = model, replay
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, fresh = folder / "checkpoint", folder / ".checkpoint-new"
        if ranks.first and not checkpoint.exists() and (fresh / "state.json").exists():
            os.rename(fresh, checkpoint)
        ranks.wait()
        self.start = fingerprint(Path(start))
        if ranks.first:
            counter.ledger = folder / "real_steps.txt"
            counter.recall()
        resumed = checkpoint.exists()
        self.lm = LocalLM.load(checkpoint if resumed else start)
        self.trainer = Trainer(self.lm, config, self._play, start, seed, action_tokens, ranks)
        self.sheets = SheetBook(tasks.values())
        self.sampler: TaskSampler = ValueSampler(sorted(tasks), seed, choose, clusters, config.advantage == "gae")
        written = folder / "tasks.jsonl"
        self.new_tasks: NewTasks | None = None
        if generator is not None:
            self.new_tasks = NewTasks(generator, achieved, self.sampler, self.sheets, self._rollouts, ranks, written, seed)
        self.probe: list[dict[str, float]] = []
        self.ended = ""
        """Why ``run`` came to its end: ``iterations``, ``budget``, ``patience`` or ``alarm``."""
        held = self._resume(checkpoint) if resumed else None
        if ranks.first:
            self._settle()
            (self.folder / "failed.jsonl").unlink(missing_ok=True)
            _cut(self.folder / "metrics.jsonl", self.iteration, "iteration")
            _cut(self.folder / "episodes.jsonl", self.iteration, "policy_version")
            if written.exists():
                _cut(written, self.iteration, "iteration")
        if self.replay is not None:
            self.replay.rewind(self.iteration)
            ranks.wait()
            if resumed and self.replay.held() != held:
                raise DataError(
                    f"{folder}: its checkpoint of iteration {self.iteration} had {held} steps in the replay buffer, which has"
                    f" {self.replay.held()} of them; restore the buffer, or delete {folder} to train anew"
                )

    @property
    def iteration(self) -> int:
        return self.trainer.progress.iteration

    def run(
        self,
        report: Callable[[dict[str, float]], None],
        probe: Sequence[Task] = (),
        every: int = 0,
        temperature: float = 0.4,
        patience: int = 0,
        first: bool = False,
    ) -> LocalLM:
        """Iterate to the end; with ``probe`` the checkpoint with the best real probe success is returned, else the last.

        Every ``every`` iterations and at the end the policy, sampled at ``temperature``, plays the tasks of ``probe`` for real
        (counted); with ``first`` also before the first iteration, so that what is returned is not worse than the start. It also ends
        (``ended``) when the real budget bears no further iteration, after ``patience`` probes (0 = any number) without a better one, or
        at an alarm (``config.watch``).
        """
        policy = self.folder / "policy"
        self.ended = ""
        if first and every and self.iteration == 0 and not self.probe:
            self._probe_alone(probe, temperature)
        while not self.ended:
            last = self.iteration + 1 == self.config.iterations
            probed = probe if every and ((self.iteration + 1) % every == 0 or last) else ()
            self.ended, tasks = self.ranks.said(self._next(len(probe) if every else 0, patience))
            if self.ended:
                break
            try:
                self._iterate(tasks, report, probed, temperature)
            except BudgetError:  # in the middle of an iteration: what it used is counted, what it played is not learned from
                self._save()
                self.ended = "budget"
        unseen = not self.probe or self.probe[-1]["iteration"] < self.iteration
        if every and self.ended == "budget" and self.ranks.said(unseen):
            self._probe_alone(probe, temperature)
        self.counter.settle()
        self.counter.ledger = None
        if not self.probe and self.ranks.first:
            self._keep(policy)
        self.ranks.wait()
        return LocalLM.load(policy) if self.ranks.first else self.lm

    def _probe_alone(self, probe: Sequence[Task], temperature: float) -> None:
        """A probe that is no iteration's: of the start, or of what a spent budget left."""
        if self.ranks.first:
            with suppress(BudgetError):
                self._probe(probe, temperature, None)
            self._save()
        self.ranks.wait()

    def _next(self, probed: int, patience: int) -> tuple[str, int]:
        """Why the run ends here, if it does; and the tasks of the next iteration."""
        if self.iteration >= self.config.iterations:
            return "iterations", 0
        if self.config.watch.stop and alarms(self.trainer.progress.metrics, self.config.watch):
            return "alarm", 0
        if patience and self._probes_since_best() >= patience:
            return "patience", 0
        tasks = self._affordable(probed)
        return ("" if tasks else "budget"), tasks

    def _iterate(self, n: int, report: Callable[[dict[str, float]], None], probe: Sequence[Task], temperature: float) -> None:
        """One iteration on ``n`` tasks, its probe and its checkpoint."""
        if self.model is not None and self.replay is not None:
            self.model.use(self.replay.snapshot())
        tasks = [self.sheets.tasks[t] for t in self.sampler.next(n)]
        before = self._spent()
        if self.model is None and self.counter.budget:
            self.trainer.spent = self.ranks.said(self.counter.total / self.counter.budget)
        try:
            played, groups, metrics = self.trainer.iterate(tasks)
        except TrainingError as e:
            failed = self.folder / "failed.jsonl"
            if self.ranks.first:
                write_atomic(failed, "".join(episode_line(r.episode) + "\n" for r in self.trainer.played))
            raise TrainingError(f"{e} ({failed})") from e
        episodes, checking = [r.episode for r in played], list[Episode]()
        for name, rewards in groups.items():
            self.sampler.observe(name, rewards, [progress_of(e) for e in episodes if e.task.id == name])
        if self.model is not None:
            self.sheets.learn(episodes)
        if self.new_tasks is not None:
            metrics |= self.new_tasks.population(groups, self.iteration - 1)
            if self.iteration % self.new_tasks.generator.config.every == 0 and self.iteration < self.config.iterations:
                began = time.perf_counter()
                told, checking = self.new_tasks.write(episodes, self.iteration - 1)
                self.sheets.learn(checking)
                metrics |= told
                metrics["write_s"] = time.perf_counter() - began
        if self.model is not None and self.replay is not None:  # at the end: making room ends the snapshot that tasks are checked with
            self.replay.add(episodes, self.iteration)
            self.ranks.wait()
        spent = {name: float(n - before[name]) for name, n in self._spent().items()}
        metrics |= dict(zip(spent, self.ranks.total(list(spent.values())), strict=True))
        metrics |= (
            self.sampler.metrics()
            | (self.replay.metrics() if self.replay is not None else {})
            | {
                "invented": float(self.sheets.invented),
                "conflicts": float(self.sheets.conflicts),
                "real_steps": float(self.counter.total),
            }
        )
        if not self.ranks.first:
            return self.ranks.wait()
        if probe:
            with suppress(BudgetError):  # what was learned stays; the budget ends the run before the next iteration
                metrics |= self._probe(probe, temperature, metrics.get("reward"))
        with open(self.folder / "metrics.jsonl", "a") as f:
            f.write(json.dumps(metrics) + "\n")
        self._dump([*episodes, *checking])
        self._save()
        self.ranks.wait()
        report(metrics)

    def _affordable(self, probed: int) -> int:
        """Tasks of the next iteration, 0 = the real budget bears none: fewer where it bears no more than that and a probe of ``probed``
        games after it.

        Reckoned at a tenth more steps than episodes had last, one more at least (many environments count their reset), up to all that they
        may have, or at those where that has just grown; a probe at half as many steps again as the last one took, or as episodes had
        last, since a last probe that is cut off would be a whole training unseen.
        """
        if self.counter.budget is None:
            return self.config.tasks
        if self.model is not None:
            return self.config.tasks if self.counter.total < self.counter.budget else 0
        metrics, longest = self.trainer.progress.metrics, self.config.longest(self.iteration, self.adapter.cap)
        grown = not metrics or longest > self.config.longest(self.iteration - 1, self.adapter.cap)
        last = metrics[-1]["steps"] if metrics else 0.0
        steps = float(longest) if grown else min(max(last * 1.1, last + 1), longest + 1.0)
        took = [0.0, *(p["probe_steps"] for p in self.probe)]
        whole = probed * (self.adapter.cap + 1)
        reserve = whole if grown and not self.probe else min(whole, 1.5 * (took[-1] - took[-2] if self.probe else probed * steps))
        left = self.counter.budget - self.counter.total - reserve
        return max(0, min(self.config.tasks, int(left / (self.config.group * steps))))

    def _probes_since_best(self) -> int:
        rates = [p["success"] for p in self.probe]
        return len(rates) - 1 - rates.index(max(rates)) if rates else 0

    def _play(self, seats: Sequence[Seat]) -> list[Rollout]:
        """Rollouts of an iteration; those of the dream are on their way into the buffer."""
        played = self._rollouts(seats)
        if self.model is not None and self.replay is not None:
            self.replay.prepare([r.episode for r in played])
        return played

    def _rollouts(self, seats: Sequence[Seat]) -> list[Rollout]:
        actor = Policy(self.lm, self.config.temperature, self.action_tokens, self.context)
        longest = self.config.longest(self.iteration, self.adapter.cap)
        if self.model is not None:
            played = self.ranks.together(play_dream(actor, self.model, longest, self._own(seats)))
            if self.ranks.size > 1:
                place = {(s.task.id, s.member): i for i, s in enumerate(seats)}
                played.sort(key=lambda r: place[r.episode.task.id, r.episode.member])
            return played
        try:
            found = play_real(actor, self.adapter, seats, self.counter, "rl", "policy", longest) if self.ranks.first else []
        except BudgetError as e:
            self.ranks.said(e)
            raise
        told = self.ranks.said(found)
        if isinstance(told, BudgetError):
            raise told
        return told

    def _own(self, seats: Sequence[Seat]) -> Sequence[Seat]:
        """This process's share of them: whole groups, since their first questions to the experience model are the same."""
        groups = list(dict.fromkeys(s.task.id for s in seats))
        mine = set(self.ranks.share(groups))
        return [s for s in seats if s.task.id in mine]

    def _spent(self) -> dict[str, int]:
        """Tokens and calls of this process so far, per component."""
        own = {"policy_tokens_in": self.lm.tokens_in, "policy_tokens_out": self.lm.tokens_out}
        return own | (self.model.costs() if self.model is not None else {})

    def _probe(self, tasks: Sequence[Task], temperature: float, dreamed: float | None) -> dict[str, float]:
        """Real success on the probe panel, and how far a dream's training reward is above it; the best policy so far is kept as the run's.

        Nothing where no episode was valid.
        """
        actor = Policy(self.lm, temperature, self.action_tokens, self.context)
        rate = real_rate(play_real(actor, self.adapter, seats_for(tasks, self.seed), self.counter, "probe", "probe"))
        if rate is None:
            return {}
        if not self.probe or rate >= max(p["success"] for p in self.probe):
            chosen = self.folder / CHOSEN
            shutil.rmtree(chosen, ignore_errors=True)
            self._keep(chosen)
            write_atomic(chosen / MARK, f"{self.iteration}")
        spent = {f"{purpose}_steps": float(self.counter.counts.get(purpose, 0)) for purpose in ("rl", "probe")}
        self.probe.append({"iteration": float(self.iteration), "success": rate, **spent})
        gap = {} if self.model is None or dreamed is None else {"dream_gap": dreamed - rate}
        return {"probe_real_success": rate, **gap}

    def _keep(self, folder: Path) -> None:
        """The policy, and with it PPO's critic, from which a run that starts there goes on."""
        self.lm.save(folder)
        if self.trainer.critic is not None:
            self.trainer.critic.save(folder / CRITIC)

    def _settle(self) -> None:
        """The policy that the last probe chose takes the place of the earlier one, once the checkpoint knows of that probe: a kill in
        between would else leave a policy that no finished iteration had."""
        chosen, policy = self.folder / CHOSEN, self.folder / "policy"
        best = max((p["success"] for p in self.probe), default=0.0)
        at = [p["iteration"] for p in self.probe if p["success"] == best][-1:]
        if (chosen / MARK).exists() and [float((chosen / MARK).read_text())] == at:
            shutil.rmtree(policy, ignore_errors=True)
            os.rename(chosen, policy)
            (policy / MARK).unlink()
        shutil.rmtree(chosen, ignore_errors=True)

    def _dump(self, episodes: Sequence[Episode]) -> None:
        with open(self.folder / "episodes.jsonl", "a", encoding="utf-8") as f:
            for e in episodes:
                f.write(episode_line(e) + "\n")

    def _save(self) -> None:
        """A new checkpoint beside the old one, then one rename: a kill at any moment leaves a whole one. The first process's work."""
        if not self.ranks.first:
            return
        fresh, old = self.folder / ".checkpoint-new", self.folder / "checkpoint"
        shutil.rmtree(fresh, ignore_errors=True)
        self.trainer.save(fresh)
        self.counter.settle()
        write_atomic(
            fresh / "state.json",
            json.dumps(
                {
                    "sampler": self.sampler.state_dict(),
                    "probe": self.probe,
                    "counts": self.counter.counts,
                    "sheets": {n: t.sheet for n, t in self.sheets.tasks.items()},
                    "written": [t.model_dump(mode="json") for t in self.sheets.tasks.values() if t.lineage],
                    "invented": self.sheets.invented,
                    "conflicts": self.sheets.conflicts,
                    "start": self.start,
                    "held": None if self.replay is None else self.replay.held(),
                }
            ),
        )
        gone = self.folder / ".checkpoint-old"
        shutil.rmtree(gone, ignore_errors=True)
        if old.exists():
            os.rename(old, gone)
        os.rename(fresh, old)
        shutil.rmtree(gone, ignore_errors=True)
        self._settle()

    def _resume(self, checkpoint: Path) -> int | None:
        """Take all in; returns how many steps the replay buffer had."""
        self.trainer.resume(checkpoint)
        state = json.loads((checkpoint / "state.json").read_text())
        if (began := state.get("start")) and self.start and began != self.start:
            spent = ", ".join(f"{n} {name}" for name, n in state["counts"].items()) or "0"
            raise DataError(
                f"{self.folder}: began from another policy than the one that is to be trained now; move it away to begin anew"
                f" (real steps spent in it: {spent})"
            )
        self.sheets.tasks |= {t.id: t for t in map(Task.model_validate, state.get("written", []))}
        try:
            self.sampler.load_state_dict(state["sampler"])
        except ValueError as e:
            raise DataError(f"{self.folder}: {e}; its logs are not those that it began with: restore them, or move it away") from e
        self.probe = state["probe"]
        self.counter.counts.update(state["counts"])
        self.counter.recall()
        self.sheets.invented, self.sheets.conflicts = state["invented"], state["conflicts"]
        self.sheets.tasks = {n: t.model_copy(update={"sheet": tuple(state["sheets"][n])}) for n, t in self.sheets.tasks.items()}
        found = state.get("held")
        return None if found is None else int(found)


def fingerprint(folder: Path) -> str | None:
    """Of the weights saved in a folder: their files' sizes and ends; None for a name on a hub."""
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with open(path, "rb") as f:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + f.read(2**20))
            f.seek(-min(2**20, path.stat().st_size), os.SEEK_END)
            digest.update(f.read())
    return digest.hexdigest() if files else None


def _cut(path: Path, iteration: int, field: str) -> None:
    """Keep the lines of finished iterations in an append-only file; a torn last line goes too."""
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        if not text:
            continue
        try:
            number = json.loads(text).get(field, 0)
        except json.JSONDecodeError:
            break
        if number < iteration:
            kept.append(text)
    write_atomic(path, "".join(text + "\n" for text in kept))
