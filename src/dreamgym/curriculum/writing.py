"""Writing new tasks with the experience model's own weights (arXiv 2511.03773 §5 and Eq. 6): what it learns, and how it is asked.

The embedded model learns to write tasks from the logged ones: shown m instructions of other tasks and a world (what is known of it at
the start, and its sheet), it says the instruction that this world came with. Asked with the instructions of tasks that are worth
playing, and sampled, it says others that the world could have come with. Shown a world from which a thing was left out, and where
similar worlds have it, it also learns to say where it belongs and what it is like (``curriculum/worlds.py``).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np

from dreamgym.core.grammar import (
    GrammarError,
    parse_instruction,
    parse_placed,
    render_instruction,
    render_lack,
    render_placed,
    render_variation,
)
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import State
from dreamgym.core.types import Task
from dreamgym.curriculum.worlds import Lack, LoggedWorlds, Placed, Where, placed, shown, things_named, without
from dreamgym.lm.local import LocalLM
from dreamgym.lm.packing import Segment, Tree

BUDGET = 48
"""Tokens of an instruction, or of a line."""
SEEDS = 3
"""m of Eq. 6: instructions shown, in training and when asked (the paper leaves it open)."""


class Asked(NamedTuple):
    """One draft to write: the seeds' instructions, the task whose world it is to be done in, and the draw's name."""

    seeds: tuple[str, ...]
    world: Task
    key: tuple[str | int, ...]


class Choice(NamedTuple):
    """Sound drafts for one parent, each with the cosine of the task most like it in its world, and what was written into that for it."""

    parent: Task
    drafts: tuple[str, ...]
    nearness: tuple[float, ...]
    added: tuple[State, ...]


class Writer(Protocol):
    """M_task."""

    imitates: bool
    """Whether it was trained to word tasks as the logged ones are, so that a draft that does not is a slip."""

    def write(self, asked: Sequence[Asked]) -> list[str | None]:
        """An instruction for each draft; None where what was written cannot be read."""
        ...

    def furnish(self, lacking: Sequence[Lack]) -> list[Placed | None]:
        """Where each world could have what it lacks; None where what was written cannot be read."""
        ...

    def choose(self, choices: Sequence[Choice]) -> list[int | None]:
        """The number of the draft to keep of each; None = none of them."""
        ...


class LocalWriter:
    """The local experience model as M_task, sampled at temperature 1."""

    imitates = True

    def __init__(self, lm: LocalLM) -> None:
        self.lm = lm

    def write(self, asked: Sequence[Asked]) -> list[str | None]:
        prompts = self.lm.encode_batch([f" {render_variation(a.seeds, a.world.sheet, a.world.first_state)}" for a in asked])
        draws = [keyed_rng("write", *a.key) for a in asked]
        return [_read(self.lm, g.ids) if g.finished else None for g in self.lm.generate(prompts, BUDGET, 1.0, draws)]

    def furnish(self, lacking: Sequence[Lack]) -> list[Placed | None]:
        prompts = self.lm.encode_batch([_asked(x.thing, x.world, x.alike) for x in lacking])
        draws = [keyed_rng("furnish", *x.key) for x in lacking]
        return [_read_placed(self.lm, g.ids) if g.finished else None for g in self.lm.generate(prompts, BUDGET, 1.0, draws)]

    def choose(self, choices: Sequence[Choice]) -> list[int | None]:
        """The draft most unlike what its world has: a tiny model has no opinion of its own."""
        return [c.nearness.index(min(c.nearness)) if c.drafts else None for c in choices]


def _read(lm: LocalLM, ids: Sequence[int]) -> str | None:
    try:
        return parse_instruction(lm.decode(ids).strip(" "))
    except GrammarError:
        return None


def _read_placed(lm: LocalLM, ids: Sequence[int]) -> Placed | None:
    try:
        where, place, text = parse_placed(lm.decode(ids).strip(" "))
    except GrammarError:
        return None
    return Placed(cast(Where, where), place, text)


def _asked(thing: str, world: Task, alike: Sequence[Task]) -> str:
    return f" {render_lack(shown(alike, thing), world.sheet, world.first_state, thing)}"


def writing_trees(lm: LocalLM, tasks: Sequence[Task], seeds: int, times: int, seed: int) -> list[Tree]:
    """Training examples of writing: every task ``times`` times, each with other seeds (its kind's, where tasks have a difficulty), and as
    often its world without a thing that it names."""
    kinds: dict[str, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(task.difficulty, []).append(task)
    prompts, answers, worlds = [], [], LoggedWorlds(tasks)
    for task in tasks:
        others = [t for t in kinds[task.difficulty] if t.id != task.id]
        for n in range(times):
            rng = keyed_rng(seed, "writing", task.id, n)
            shown = [others[int(i)].instruction for i in rng.permutation(len(others))[:seeds]]
            prompts.append(f" {render_variation(shown, task.sheet, task.first_state)}")
            answers.append(f" {render_instruction(task.instruction)}")
            if named := things_named(task.instruction, task):
                thing = named[int(rng.integers(len(named)))]
                rest, found = without(task, thing), placed(task, thing)
                assert found is not None
                prompts.append(_asked(thing, rest, worlds.alike(rest, thing)))
                answers.append(f" {render_placed(*found)}")
    pairs = zip(lm.encode_batch(prompts), lm.encode_batch(answers), strict=True)
    trees = [Tree(tuple(p[:-1]), (Segment((p[-1], *a, lm.eos), len(a) + 1),)) for p, a in pairs]
    return [trees[int(i)] for i in np.random.default_rng(seed).permutation(len(trees))]
