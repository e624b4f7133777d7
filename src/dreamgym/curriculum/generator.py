"""The task generator: seeds that are worth playing in, drafts out, the best sound one of each seed kept, with a reason for every other.

    generator = TaskGenerator(writer, logged_tasks, GeneratorConfig(), seed)
    for draft in generator.vary(tasks, sampler.values(), iteration): ...

A draft has to be well formed (where the writer imitates logged instructions its words follow each other as theirs do; a chat model's
has no signs that they have not), new (in its world no task is like it) and possible: what it names is in its world, or can be written
into it (``curriculum/worlds.py``). The criteria are those of the paper's selection prompt (arXiv 2511.03773 App. C.2) as far as code
can hold them; whether it is challenging is measured by playing it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import State
from dreamgym.core.types import Episode, Feat, StopReason, Task
from dreamgym.curriculum.config import GeneratorConfig
from dreamgym.curriculum.sampler import FLOOR
from dreamgym.curriculum.worlds import Lack, LoggedWorlds, named_in, words_of
from dreamgym.curriculum.writing import SEEDS, Asked, Choice, Writer
from dreamgym.replay.encoder import HashingEncoder

START, END, NAMED = "<", ">", "*"
LACKING = "names what is not in its world"
ALIKE = "like another task of its world"
DIMENSION = 4096
"""Of the encoder that says how alike tasks are: so many that words of instructions hardly share one."""
Achieved = Callable[[Task, Episode], Feat | None]
"""What an episode did achieve; None where that is nothing."""


class Draft(NamedTuple):
    """What was written for a parent, and what came of it."""

    parent: str
    seeds: tuple[str, ...]
    instruction: str | None
    verdict: str
    """``kept``, or why not."""
    task: Task | None
    furnished: State = ()
    """Lines that were written into its world, also where another draft was chosen."""
    solution: tuple[str, ...] = ()
    """Of a hindsight task: actions that do it."""


class TaskGenerator:
    """M_task with its checks. Deterministic: every draw is keyed by (seed, iteration, parent, draft)."""

    def __init__(
        self,
        writer: Writer,
        logged: Sequence[Task],
        config: GeneratorConfig,
        seed: int,
        allowed: Callable[[str], bool] = lambda instruction: True,
        canonical: Callable[[str], str] | None = None,
        clusters: Mapping[str, int] | None = None,
    ) -> None:
        """``allowed``: whether an instruction may be trained on, where an environment keeps some for evaluation; ``canonical``: the one
        wording of all instructions that ask for the same, by which then tasks are alike or not; ``clusters``: of logged tasks, where
        tasks of a cluster are varied together (``ValueSampler``)."""
        self.writer, self.config, self.seed, self._allowed, self._canonical = writer, config, seed, allowed, canonical
        self._clusters = clusters or {}
        self._known = Phrases(logged)
        self._worlds = LoggedWorlds(logged)
        self._encoder = HashingEncoder(DIMENSION)

    def well_formed(self, text: str | None) -> bool:
        """Whether a draft is worded as logged instructions are, whatever it names; a chat model chooses its own words, not its signs."""
        return text is not None and (self._known.follows(text) if self.writer.imitates else self._known.signed(text))

    def vary(self, tasks: Mapping[str, Task], values: Mapping[str, Mapping[str, float]], iteration: int) -> list[Draft]:
        """One round: drafts for the most valuable of ``tasks`` that were played and are worth more than the floor; ties are drawn.

        What counts is the mean value of a task and of its children that were played: a parent whose children nobody can do, or all can,
        is not asked for more of them (our choice).
        """
        rng = keyed_rng(self.seed, "parents", iteration)
        worth = {t: [values[t]["value"]] for t in tasks if t in values and values[t]["visits"]}
        for t in list(worth):
            if tasks[t].lineage and tasks[t].lineage[-1] in worth:
                worth[tasks[t].lineage[-1]].append(values[t]["value"])
        family = {t: fmean(of) for t, of in worth.items()}
        played = [(value, rng.random(), t) for t, value in family.items() if value > FLOOR]
        best = [t for _, _, t in sorted(played, reverse=True)]
        parents = [tasks[t] for t in best[: self.config.parents]]
        asked = [
            Asked(self._seeds(parent, best, tasks, rng), parent, (self.seed, iteration, parent.id, n))
            for parent in parents
            for n in range(self.config.drafts)
        ]
        written = [text and self._worded(text) for text in self.writer.write(asked)]
        worlds = _worlds(tasks.values())
        checked = [self._check(text, a.world, worlds.get(world_of(a.world), [])) for text, a in zip(written, asked, strict=True)]
        homes = self._homes(asked, written, [verdict for verdict, _ in checked])
        rows = [range(i * self.config.drafts, (i + 1) * self.config.drafts) for i in range(len(parents))]
        sound = [[i for i in row if not checked[i][0] and isinstance(homes[i], Task)] for row in rows]
        choices = [
            Choice(
                parent,
                tuple(str(written[i]) for i in of),
                tuple(checked[i][1] for i in of),
                tuple(beyond(parent, home) for i in of if isinstance(home := homes[i], Task)),
            )
            for parent, of in zip(parents, sound, strict=True)
        ]
        picked = {of[n] for of, n in zip(sound, self.writer.choose(choices), strict=True) if n is not None}
        found = []
        for i, (text, ask, (verdict, _), home) in enumerate(zip(written, asked, checked, homes, strict=True)):
            task = self._new(home, text, worlds, iteration) if text is not None and isinstance(home, Task) and i in picked else None
            others = "another draft was chosen" if picked & set(rows[i // self.config.drafts]) else "none was chosen"
            passed = "kept" if task else ALIKE if i in picked else others
            verdict = verdict or (home if isinstance(home, str) else passed)
            found.append(Draft(ask.world.id, ask.seeds, text, verdict, task, beyond(ask.world, home) if isinstance(home, Task) else ()))
        return found

    def _homes(self, asked: Sequence[Asked], written: Sequence[str | None], verdicts: Sequence[str]) -> list[Task | str]:
        """The world of each draft: its seed's with what that lacks written in, or why it cannot be; a refused draft's as it is."""
        homes: list[Task | str] = [a.world for a in asked]
        lacks = [
            (i, Lack(thing, a.world, self._worlds.alike(a.world, thing), (*a.key, thing)))
            for i, (text, a, verdict) in enumerate(zip(written, asked, verdicts, strict=True))
            if text is not None and not verdict
            for thing in self._known.missing(text, _world(a.world))
        ]
        asking = [lack for _, lack in lacks if lack.alike]
        lines = dict(zip((x.key for x in asking), self.writer.furnish(asking) if asking else (), strict=True))
        for i, lack in lacks:
            home = homes[i]
            if isinstance(home, Task):
                made = self._worlds.furnished(home, lack.thing, lines[lack.key]) if lack.alike else "no logged world has one"
                homes[i] = made if isinstance(made, Task) else f"{LACKING}: {lack.thing} ({made})"
        return homes

    def hindsight(self, episodes: Sequence[Episode], tell: Achieved, tasks: Mapping[str, Task], iteration: int) -> list[Draft]:
        """Tasks that failed episodes did achieve (arXiv 2501.10893): ``tell`` words what an episode came to, in its own world.

        Their solution is known: the episode's own actions and what ``tell`` adds. At most one per world and ``parents`` in all, drawn.
        """
        failed = [e for e in episodes if e.valid and e.stop is not StopReason.WON and e.task.id in tasks]
        order = keyed_rng(self.seed, "hindsight", iteration).permutation(len(failed))
        worlds, found, done = _worlds(tasks.values()), list[Draft](), set[str]()
        for episode in (failed[int(i)] for i in order):
            task = tasks[episode.task.id]
            told = tell(task, episode) if world_of(task) not in done and len(done) < self.config.parents else None
            if told is None:
                continue
            text = self._worded(told.instruction)
            verdict, _ = self._check(text, task, worlds.get(world_of(task), []))
            if missing := self._known.missing(text, _world(task)):
                verdict = verdict or f"{LACKING}: {missing[0]}"
            new = None if verdict else self._new(task, text, worlds, iteration)
            if new is not None:
                done.add(world_of(task))
            passed = "kept" if new else ALIKE
            found.append(Draft(task.id, (task.instruction,), text, verdict or passed, new, (), told.solution if new else ()))
        return found

    def _new(self, parent: Task, text: str, worlds: dict[str, list[str]], iteration: int) -> Task | None:
        """The draft as a task in the world of ``parent``; None where a task like it has come into that logged world meanwhile."""
        here = worlds.setdefault(world_of(parent), [])
        if self._alike(text, here):
            return None
        here.append(text)
        name = f"{world_of(parent)}~{iteration}.{len(here)}"
        return parent.model_copy(update={"id": name, "instruction": text, "lineage": (*parent.lineage, parent.id)})

    def _seeds(self, parent: Task, best: Sequence[str], tasks: Mapping[str, Task], rng: np.random.Generator) -> tuple[str, ...]:
        """The parent's instruction last, before it those of other valuable tasks of its cluster, or else of its kind."""
        others = [t for t in best if t != parent.id and self._kind(tasks[t]) == self._kind(parent)]
        shown = [others[int(i)] for i in rng.permutation(min(len(others), 4 * SEEDS))[: SEEDS - 1]]
        return (*(tasks[t].instruction for t in shown), parent.instruction)

    def _kind(self, task: Task) -> int | str:
        return self._clusters.get(world_of(task), task.difficulty)

    def _worded(self, text: str) -> str:
        return self._canonical(text) if self._canonical else text

    def _check(self, text: str | None, parent: Task, here: Sequence[str]) -> tuple[str, float]:
        """Why a draft is not sound ("" where it is, whatever its world has), and the cosine of the instruction most like it there."""
        if text is None:
            return "unreadable", 1.0
        if not self._allowed(text):
            return "kept for evaluation", 1.0
        if twice := self._known.twice(text):
            return f"names a thing twice: {twice[0]}", 1.0
        if not self.well_formed(text):
            return "malformed", 1.0
        return (ALIKE if self._alike(text, here) else ""), self._nearest(text, here)

    def _alike(self, text: str, others: Sequence[str]) -> bool:
        """Whether some other asks for the same: where the environment can say so by its word, else by the encoder."""
        if self._canonical:
            return self._worded(text) in map(self._worded, others)
        return self._nearest(text, others) >= self.config.alike

    def _nearest(self, text: str, others: Sequence[str]) -> float:
        """The largest cosine of an instruction and others; 0 where there are none."""
        vectors = self._encoder.encode([((), self._worded(t)) for t in (text, *others)])
        return float((vectors[1:] @ vectors[0]).max()) if len(others) else 0.0


class Phrases:
    """How logged instructions are worded: which three words follow each other, things that they name counting as one word.

    Things are what some world's lines ``[place] thing: description`` are about; where states have no such lines nothing is one.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        worded = {w for t in tasks for w in words_of(t.instruction)}
        self._things = worded & {w for t in tasks for w in named_in(_world(t))}
        self._signs = {c for t in tasks for c in t.instruction if not c.isalnum()}
        self._threes: set[tuple[str, ...]] = set()
        for t in tasks:
            words = self._shape(t.instruction)
            self._threes |= set(zip(words, words[1:], words[2:], strict=False))

    def missing(self, instruction: str, world: State) -> list[str]:
        """Things of other worlds that ``instruction`` names and ``world`` has not."""
        named = named_in(world)
        return [w for w in words_of(instruction) if w in self._things and w not in named]

    def twice(self, instruction: str) -> list[str]:
        """Things that ``instruction`` names more than once."""
        words = words_of(instruction)
        return [w for w in dict.fromkeys(words) if w in self._things and words.count(w) > 1]

    def follows(self, instruction: str) -> bool:
        """Whether every three words follow each other as in some logged instruction."""
        words = self._shape(instruction)
        return len(words) > 2 and all(three in self._threes for three in zip(words, words[1:], words[2:], strict=False))

    def signed(self, instruction: str) -> bool:
        """Whether it has words, and no signs but those of logged instructions: markup is no task."""
        signs = {c for c in instruction if not (c.isalnum() or c.isspace())}
        return signs <= self._signs and any(map(str.isalnum, instruction))

    def _shape(self, instruction: str) -> list[str]:
        return [START, *(NAMED if w in self._things else w for w in words_of(instruction)), END]


def beyond(parent: Task, task: Task) -> State:
    """Lines of a task's world that its parent's has not."""
    return tuple(s for s in _world(task) if s not in _world(parent))


def _world(task: Task) -> State:
    return (*task.first_state, *task.sheet)


def world_of(task: Task) -> str:
    """The logged task in whose world a task is, with or without further things."""
    return (*task.lineage, task.id)[0]


def _worlds(tasks: Iterable[Task]) -> dict[str, list[str]]:
    """The instructions of each world."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(world_of(task), []).append(task.instruction)
    return found
