"""Kinds of steps: what an experience model gets wrong depends on them, so training repeats by kind and the audit counts by it.

``won``, ``lost``, ``several`` (things changed), ``one``; and where nothing changed: ``absent`` (a sound command about a
thing that is not there), ``malformed`` (a pattern that never had an effect in the logs) and ``none`` (well formed, no effect).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dreamgym.core.state import LINE, entity
from dreamgym.core.types import Episode, Transition


def change_of(t: Transition) -> str:
    """won, lost, none, one or several (things changed): what can be said without knowing the logs."""
    if t.outcome != "go":
        return t.outcome
    things = {entity(x) for x in (*t.removed, *t.added)}
    return "none" if not things else "one" if len(things) == 1 else "several"


@dataclass(frozen=True)
class StepKinds:
    """Tells the kinds apart by the names and the command patterns that real logs hold."""

    things: frozenset[str]
    """Names of things and places."""
    patterns: frozenset[str]
    """Actions without those names that changed something at least once."""

    @classmethod
    def of(cls, logs: Sequence[Episode]) -> "StepKinds":
        things = frozenset(_things(logs))
        return cls(things, frozenset(_pattern(t.action, things) for e in logs for t in e.steps if t.change))

    def kind(self, t: Transition) -> str:
        change = change_of(t)
        if change != "none":
            return change
        if _pattern(t.action, self.things) not in self.patterns:
            return "malformed"
        here = {w for s in t.state for w in s.replace("[", " ").replace("]", " ").replace(":", " ").split()}
        return "absent" if any(w in self.things and w not in here for w in t.action.split()) else "none"


def _pattern(action: str, things: frozenset[str]) -> str:
    return " ".join("X" if w in things else w for w in action.split())


def _things(episodes: Iterable[Episode]) -> set[str]:
    found: set[str] = set()
    for e in episodes:
        for t in e.transitions:
            for s in t.state:
                found.add(entity(s))
                if m := LINE.fullmatch(s):
                    found.add(m["place"])
    return found
