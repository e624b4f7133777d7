"""From TextWorld's facts to the abstract state: what has been in sight, one line per thing.

``[counter] carrot: fresh uncut`` · ``[kitchen] fridge: closed`` · ``[held] knife: sharp`` · ``[kitchen] room: counter stove``

The state carries what the agent has learned: contents of a fridge stay known after it is closed. Only things that have
been in sight are shown; the attributes of a thing in sight count as revealed. Names become one word
(``red_potato``), because a name of several words is what tiny models mix up.
"""

from collections.abc import Iterable
from typing import Literal, Protocol

from dreamgym.core.state import State, line, make_state

View = Literal["carried", "current", "rooms"]
"""What a state holds: all that was seen, what is in sight now, or all that was seen in several rooms (``rooms.py``)."""
HELD, FLOOR, ROOM = "held", "floor", "room"
_COOKED = ("burned", "fried", "roasted", "grilled")
_CUT = ("chopped", "sliced", "diced", "uncut")


class Fact(Protocol):
    """A TextWorld proposition, as far as the mapper reads it."""

    name: str

    @property
    def arguments(self) -> Iterable["Variable"]: ...


class Variable(Protocol):
    name: str
    type: str


def one_word(name: str) -> str:
    return name.replace(" ", "_")


def spaced(command: str) -> str:
    """A command in the game's own spelling."""
    return command.replace("_", " ")


class FactMapper:
    """Keeps one episode's knowledge. ``observe`` after reset and after every step returns the state."""

    def __init__(self, view: View = "carried") -> None:
        self.view = view
        self._known: dict[str, str] = {}

    def reset(self) -> None:
        self._known = {}

    def observe(self, facts: Iterable[Fact]) -> State:
        visible, open_places = visible_things(facts)
        if self.view == "carried":
            for thing, (place, _) in places_of(self._known).items():
                if thing not in visible and place not in open_places:
                    visible[thing] = self._known[thing]
        self._known = visible
        return make_state(visible.values())


def places_of(known: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {thing: (text[1 : text.index("]")], text) for thing, text in known.items()}


def visible_things(facts: Iterable[Fact]) -> tuple[dict[str, str], set[str]]:
    """Lines of all that is in sight by thing, and the places whose content is in sight."""
    unary: dict[str, set[str]] = {}
    where: dict[str, tuple[str, str]] = {}
    types: dict[str, str] = {}
    here = ""
    for f in facts:
        arguments = list(f.arguments)
        for v in arguments:
            types[v.name] = v.type
        if len(arguments) == 1:
            unary.setdefault(arguments[0].name, set()).add(f.name)
        elif f.name in ("at", "on", "in") and len(arguments) == 2:
            if arguments[0].type == "P":
                here = arguments[1].name
            else:
                where[arguments[0].name] = (f.name, arguments[1].name)
    seen: dict[str, str] = {}
    open_places = {HELD, FLOOR}
    surfaces = []
    for thing, (relation, place) in sorted(where.items()):
        if relation == "at" and place == here:
            attributes = unary.get(thing, set())
            if attributes & {"open", "closed", "locked"}:
                seen[one_word(thing)] = line(one_word(here), one_word(thing), "open" if "open" in attributes else "closed")
                if "open" in attributes:
                    open_places.add(one_word(thing))
            elif types[thing] in ("s", "stove", "toaster"):
                surfaces.append(one_word(thing))
                open_places.add(one_word(thing))
    seen[ROOM] = line(one_word(here), ROOM, " ".join(surfaces))
    for thing, (_, place) in sorted(where.items()):
        spot = HELD if types.get(place) == "I" else FLOOR if place == here else one_word(place)
        if types[thing] in ("f", "o", "meal", "k") and spot in open_places:
            seen[one_word(thing)] = line(spot, one_word(thing), attributes_text(types[thing], unary.get(thing, set())))
    return seen, open_places


def attributes_text(kind: str, attributes: set[str]) -> str:
    """What a thing went through, in a fixed order."""
    if kind == "f":
        cooked = next((c for c in _COOKED if c in attributes), "raw" if "needs_cooking" in attributes else "fresh")
        return f"{cooked} {next((c for c in _CUT if c in attributes), 'whole')}"
    if kind == "meal":
        return next((c for c in _COOKED if c in attributes), "edible")
    return "sharp" if "sharp" in attributes else "plain"
