"""Logs as an agent would have recorded them that sees only what is visible now (the setting ``view = current``).

The carried state holds what a closed container was seen to hold; the current view does not. Taking those lines away from
each logged state gives the very states that the mapper's other setting would have given (tested): the levels have one room.
"""

from dreamgym.core.state import LINE, State, diff
from dreamgym.core.types import Episode, Transition


def visible_now(state: State) -> State:
    """``state`` without what is in closed containers."""
    read = [(s, LINE.fullmatch(s)) for s in state]
    closed = {m["kind"] for _, m in read if m and m["text"] == "closed"}
    return tuple(s for s, m in read if not (m and m["place"] in closed))


def projected(episode: Episode) -> Episode:
    """``episode`` in the current view: every state, and so every change."""
    return episode.model_copy(
        update={
            "task": episode.task.model_copy(update={"first_state": visible_now(episode.task.first_state)}),
            "transitions": tuple(_projected(t) for t in episode.transitions),
            "branches": tuple(b.model_copy(update={"transition": _projected(b.transition)}) for b in episode.branches),
        }
    )


def _projected(t: Transition) -> Transition:
    before = visible_now(t.state)
    change = diff(before, visible_now(t.next_state))
    return t.model_copy(update={"state": before, "removed": change.removed, "added": change.added})
