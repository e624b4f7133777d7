"""Reasoning annotations R* of logged transitions (arXiv 2511.03773 §4.2), from a programmatic teacher.

``before_after`` is the generic teacher that any user has: it only names the difference between the two states. An
environment may bring its own ``Teacher``; both are privileged, since they know the true outcome.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from dreamgym.core.state import entity
from dreamgym.core.types import Branch, Episode, Task, Transition


class Teacher(Protocol):
    """Explains one transition of a task in words that its instruction, sheet, state and outcome support."""

    def explain(self, task: Task, t: Transition) -> str: ...


class GenericTeacher:
    """The default for users without a teacher of their own: before against after."""

    def explain(self, task: Task, t: Transition) -> str:
        return before_after(t)


def before_after(t: Transition) -> str:
    """What changes, by the things concerned, then the verdict."""
    things = list(dict.fromkeys(entity(x).split(" ")[0] for x in (*t.removed, *t.added)))
    verdict = {"go": "works" if t.change else "nothing changes", "won": "won", "lost": "lost"}[t.outcome]
    return f"changes {' '.join(things)} , {verdict}" if things else verdict


def annotate(episodes: Iterable[Episode], teacher: Teacher) -> Iterator[Episode]:
    """The same episodes with a reasoning on every step."""
    for episode in episodes:

        def explained(t: Transition, task: Task = episode.task) -> Transition:
            return t.model_copy(update={"reasoning": teacher.explain(task, t)})

        yield episode.model_copy(
            update={
                "transitions": tuple(explained(t) for t in episode.transitions),
                "branches": tuple(Branch(at=b.at, transition=explained(b.transition)) for b in episode.branches),
            }
        )
