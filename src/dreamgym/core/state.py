"""States as text: a set of lines ``[place] kind: description``, and the change from one state to the next.

A state is what the agent has learned so far, one short line per thing, sorted. The experience model predicts only the
*change*, lines removed and lines added; the code here applies it with set operations and knows nothing about any
particular environment (arXiv 2511.03773 leaves the form of the next state open; predicting the change is our choice).

    before = ("[counter] carrot: fresh uncut", "[kitchen] fridge: closed")
    after = apply_change(before, Change(removed=before[:1], added=("[held] carrot: fresh uncut",)))
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

State = tuple[str, ...]
ADMISSIBLE = "[action] "
"""State lines that begin so name an admissible action: an environment that lists them puts them into its observation."""
LINE = re.compile(r"\[(?P<place>[^\]\s]+)\] (?P<kind>[^\s:]+):(?: (?P<text>.*))?")


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between two states: ``removed`` lines leave, ``added`` lines enter."""

    removed: State = ()
    added: State = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)


class InconsistentChange(ValueError):
    """A predicted change that does not fit the state; the text says which line and why."""


def make_state(lines: Iterable[str]) -> State:
    """The canonical form of a set of lines: stripped, without blanks and duplicates, sorted."""
    return tuple(sorted({line.strip() for line in lines if line.strip()}))


def state_of_text(text: str) -> State:
    """The state an observation text stands for: one line of text is one line of state."""
    return make_state(text.splitlines())


def text_of_state(state: State) -> str:
    """The observation text of a state, one line each."""
    return "\n".join(state)


def line(place: str, kind: str, text: str = "") -> str:
    """One state line ``[place] kind: text``."""
    return f"[{place}] {kind}: {text}".rstrip()


def entity(state_line: str) -> str:
    """What a line is about: the kind of ``[place] kind: text``, ``[7]`` of an element with a number (``[7] button: "Back"``, as web states
    have them), or the whole line where it has no such form."""
    m = LINE.fullmatch(state_line)
    if m is None:
        return state_line
    return f"[{m['place']}]" if m["place"].isdecimal() else m["kind"]


def diff(before: State, after: State) -> Change:
    """The change that leads from ``before`` to ``after``."""
    old, new = set(before), set(after)
    return Change(tuple(sorted(old - new)), tuple(sorted(new - old)))


def apply_change(state: State, change: Change) -> State:
    """The state after ``change``.

    Raises ``InconsistentChange`` where a removed line is not there, an added line already is, or an added line
    contradicts one that stays (the same thing would have two lines): facts once revealed do not fork.
    """
    lines = set(state)
    for gone in change.removed:
        if gone not in lines:
            raise InconsistentChange(f"removes a line that is not there: {gone!r}")
        lines.remove(gone)
    about = {entity(old) for old in lines if LINE.fullmatch(old)}  # a line without the form is about nothing but itself
    for new in change.added:
        if new in lines:
            raise InconsistentChange(f"adds a line that is already there: {new!r}")
        if LINE.fullmatch(new):
            if entity(new) in about:
                raise InconsistentChange(f"contradicts what is known of {entity(new)!r}: {new!r}")
            about.add(entity(new))
        lines.add(new)
    return tuple(sorted(lines))


def forked(sheet: State, change: Change) -> State:
    """What ``change`` shows of things that ``sheet`` says otherwise: a world that is known is not invented anew."""
    said = {entity(s) for s in sheet if LINE.fullmatch(s)}
    return tuple(new for new in revelations(change) if entity(new) in said and new not in sheet)


def revelations(change: Change) -> State:
    """Lines of ``change`` that show things for the first time, as opposed to lines that an action produced.

    Where a thing vanishes without a new line of its own, it was consumed into something else; then nothing in that
    change counts as revealed. Callers drop things they have seen before.
    """
    added = {entity(new) for new in change.added}
    removed = {entity(old) for old in change.removed}
    if removed - added:
        return ()
    return tuple(new for new in change.added if entity(new) not in removed)
