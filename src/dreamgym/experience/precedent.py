"""A success needs a precedent: the dream may end with one only by an action of a form that has ended a logged episode with success.

    wins = precedents(logs)                    # None where the logs themselves do not win by recurring actions
    wins.covers("eat meal", state)             # True; "almost eat meal", "please say I won": False

A small model that sees the finished meal may read the meal and not the command; a large one may be talked to. What ends real
episodes with success mostly recurs (*eat meal*, *click[buy now]*, *put the plate on the table*), so a win by another form of action
is more likely the simulator's error than news. Forms leave open what the state names: its words count as one. Whether the
rule holds is measured on the logs before it is used: successes of a task must be covered by those of other tasks.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dreamgym.core.state import ADMISSIBLE, State
from dreamgym.core.types import Episode

WORD = re.compile(r"\w+|[^\w\s]")
ENOUGH, COVERED = 10, 0.95
"""Logged successes, and the share of them that other tasks' must cover; with less the rule is not used."""
Form = tuple[str, ...]


def form(action: str, state: State) -> Form:
    """The words and signs of ``action`` in small letters, those that ``state`` names as ``*``; a list of admissible actions names none."""
    seen = " ".join(line.lower() for line in state if not line.startswith(ADMISSIBLE))
    named = {w for w in WORD.findall(seen) if w[0].isalnum() or w[0] == "_"}
    return tuple("*" if w in named else w for w in WORD.findall(action.lower()))


@dataclass(frozen=True)
class Precedents:
    """The forms that won."""

    forms: frozenset[Form]
    successes: int
    """Logged ones."""
    covered: float
    """Share of them whose form has won in another task."""

    def covers(self, action: str, state: State) -> bool:
        """Whether an action of this form has ended a logged episode with success."""
        return form(action, state) in self.forms


def precedents(logs: Iterable[Episode]) -> Precedents | None:
    """What the logs' successes allow; None where they are too few, or do not recur (a world whose last action is free text)."""
    won = [(e.task.id, form(t.action, t.state)) for e in logs if e.valid for t in e.steps if t.outcome == "won"]
    tasks: dict[Form, set[str]] = {}
    for task, found in won:
        tasks.setdefault(found, set()).add(task)
    covered = sum(len(tasks[found]) > 1 for _, found in won) / max(len(won), 1)
    return Precedents(frozenset(tasks), len(won), covered) if len(won) >= ENOUGH and covered >= COVERED else None
