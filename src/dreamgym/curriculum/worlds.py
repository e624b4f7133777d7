"""What the world of a new task lacks: which things those are, which logged worlds have them, and whether a line about one fits in.

A new task inherits its world from its seed, since a world hardly depends on what is to be done in it. Where it names a thing that the
world does not have, a line about that thing is written into first state or sheet, with those of the most similar logged worlds as
demonstrations (our choice; arXiv 2511.03773 leaves open where the first state of a new task comes from).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from dreamgym.core.state import LINE, State, entity, line, make_state
from dreamgym.core.types import Task
from dreamgym.replay.encoder import HashingEncoder

_WORD = re.compile(r"[\w'-]+|[^\w\s]")
SHOWN = 3
"""Logged worlds that are shown."""
Where = Literal["state", "sheet"]
"""Known at the start, or only to the experience model."""


class Placed(NamedTuple):
    """A thing in a world."""

    where: Where
    place: str
    text: str
    """What is said of it."""


class Lack(NamedTuple):
    """A thing that the world of a new task lacks, the logged worlds most like it that have the thing, and the draw's name."""

    thing: str
    world: Task
    alike: tuple[Task, ...]
    key: tuple[str | int, ...]


def words_of(text: str) -> list[str]:
    return _WORD.findall(text)


def named_in(world: State) -> set[str]:
    """The words that a world's lines are about: their things and places, not what is said of them."""
    return {w for m in map(LINE.fullmatch, world) if m for w in words_of(f"{m['place']} {m['kind']}")}


def placed(task: Task, thing: str) -> Placed | None:
    """Where a task's world has a thing."""
    for where in get_args(Where):
        for text in _part(task, where):
            if (m := LINE.fullmatch(text)) and m["kind"] == thing:
                return Placed(where, m["place"], m["text"] or "")
    return None


def without(task: Task, thing: str) -> Task:
    """The same world without the lines about a thing."""

    def rest(lines: State) -> State:
        return tuple(s for s in lines if not ((m := LINE.fullmatch(s)) and m["kind"] == thing))

    return task.model_copy(update={"first_state": rest(task.first_state), "sheet": rest(task.sheet)})


class LoggedWorlds:
    """The worlds of the logs: who has a thing, how it is described there, and which places have things in them."""

    def __init__(self, logged: Sequence[Task]) -> None:
        self._tasks = logged
        self._encoder = HashingEncoder(1024)
        self._vectors = self._encoder.encode([(_lines(t), "") for t in logged])
        self._having: dict[str, list[int]] = defaultdict(list)
        self._said: dict[str, set[str]] = defaultdict(set)
        self._places: set[tuple[Where, str]] = set()
        named = {w for t in logged for w in words_of(t.instruction)}
        for i, t in enumerate(logged):
            for where in get_args(Where):
                for m in filter(None, map(LINE.fullmatch, _part(t, where))):
                    if i not in self._having[m["kind"]][-1:]:
                        self._having[m["kind"]].append(i)
                    self._said[m["kind"]].add(m["text"] or "")
                    if m["kind"] in named:
                        self._places.add((where, m["place"]))

    def alike(self, world: Task, thing: str) -> tuple[Task, ...]:
        """The logged worlds most like ``world`` that have ``thing``, the most alike first; never the one it descends from."""
        [vector] = self._encoder.encode([(_lines(world), "")])
        near = self._vectors @ vector
        others = [i for i in self._having.get(thing, []) if self._tasks[i].id not in (world.id, *world.lineage)]
        return tuple(self._tasks[i] for i in sorted(others, key=lambda i: -near[i])[:SHOWN])

    def furnished(self, world: Task, thing: str, found: Placed | None) -> Task | str:
        """``world`` with ``thing`` in it, or why it cannot be there so."""
        if found is None or not LINE.fullmatch(told := line(found.place, thing, found.text)):
            return "unreadable"
        if found.place not in _spots(_lines(world) if found.where == "sheet" else world.first_state):
            return f"no such place: {found.place}"
        if (found.where, found.place) not in self._places:
            return f"nothing that a logged task names is in {found.place} ({found.where})"
        there = {w for w in get_args(Where) for m in map(LINE.fullmatch, _part(world, w)) if m and m["place"] == found.place}
        if there and found.where not in there:
            return f"in {found.where}, where nothing else is told of {found.place}"
        if found.text not in self._said.get(thing, ()):
            return f"no logged world says so of it: {found.text!r}"
        if entity(told) in map(entity, _lines(world)):
            return f"{entity(told)} is something else there"
        name = "first_state" if found.where == "state" else "sheet"
        return world.model_copy(update={name: make_state((*_part(world, found.where), told))})


def _part(task: Task, where: Where) -> State:
    return task.first_state if where == "state" else task.sheet


def _lines(task: Task) -> State:
    return (*task.first_state, *task.sheet)


def _spots(lines: State) -> set[str]:
    """Whatever lines speak of; which of it are places, the logs know."""
    found = [m for m in map(LINE.fullmatch, lines) if m]
    return {spot for m in found for spot in (m["place"], m["kind"], *words_of(m["text"] or ""))}


def things_named(instruction: str, task: Task) -> list[str]:
    """Things of a task's world that an instruction names and that a line is about, in its order."""
    about = {m["kind"] for m in map(LINE.fullmatch, _lines(task)) if m}
    return [w for w in dict.fromkeys(words_of(instruction)) if w in about]


def shown(alike: Iterable[Task], thing: str) -> list[Placed]:
    """Where they have a thing."""
    return [p for t in alike if (p := placed(t, thing))]
