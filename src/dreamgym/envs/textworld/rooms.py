"""From TextWorld's facts to the abstract state where there are several rooms: things as in ``mapper``, and a map that grows.

``[bedroom] you: here`` · ``[bedroom] bedroom_north: way`` · ``[bedroom] bedroom_north_to: livingroom`` · ``[door] plain_door: closed``
· ``[kitchen] counter: surface`` · ``[kitchen_floor] knife: sharp``

Where an exit leads is shown once it was taken, in both directions: so it is one of the facts that a world sheet holds. All that was
seen in other rooms stays known.
"""

from collections.abc import Iterable

from dreamgym.core.state import State, line, make_state
from dreamgym.envs.textworld.mapper import HELD, Fact, attributes_text, one_word, places_of

YOU, HERE, WAY, DOOR, SURFACE = "you", "here", "way", "door", "surface"
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def exit_of(room: str, direction: str) -> str:
    return f"{room}_{direction}"


def end_of(room: str, direction: str) -> str:
    """The thing whose line says where an exit leads."""
    return f"{exit_of(room, direction)}_to"


def floor_of(room: str) -> str:
    return f"{room}_floor"


class RoomsMapper:
    """Keeps one episode's knowledge. ``observe`` after reset and after every step returns the state."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._known: dict[str, str] = {}
        self._room = ""

    def observe(self, facts: Iterable[Fact]) -> State:
        room, ways, seen, open_places = look_around(list(facts))
        for direction, beyond in ways.items():
            if beyond == self._room:  # where one comes from
                seen[end_of(room, direction)] = line(room, end_of(room, direction), beyond)
                back = OPPOSITE[direction]
                seen[end_of(beyond, back)] = line(beyond, end_of(beyond, back), room)
        for thing, (place, text) in places_of(self._known).items():
            if thing not in seen and place not in open_places:
                seen[thing] = text
        self._known, self._room = seen, room
        return make_state(seen.values())


def look_around(facts: list[Fact]) -> tuple[str, dict[str, str], dict[str, str], set[str]]:
    """The room, the rooms next to it by direction, the lines of all that is in sight by thing, and the places whose content is."""
    types = {v.name: v.type for f in facts for v in f.arguments}
    read = [(f.name, [v.name for v in f.arguments]) for f in facts]
    unary: dict[str, set[str]] = {}
    for name, names in read:
        if len(names) == 1:
            unary.setdefault(names[0], set()).add(name)
    placed = [(names[0], name, names[1]) for name, names in read if name in ("at", "on", "in") and len(names) == 2]
    here = next((place for thing, _, place in placed if types[thing] == "P"), "")
    where = {thing: (relation, place) for thing, relation, place in placed if types[thing] != "P"}
    room = one_word(here)
    beyond = {name.removesuffix("_of"): names[0] for name, names in read if name.removesuffix("_of") in OPPOSITE and names[1] == here}
    doors = {names[2]: names[1] for name, names in read if name == "link" and names[0] == here}
    seen = {YOU: line(room, YOU, HERE)}
    for direction, other in beyond.items():
        door = doors.get(other)
        seen[exit_of(room, direction)] = line(room, exit_of(room, direction), one_word(door) if door else WAY)
        if door:
            seen[one_word(door)] = line(DOOR, one_word(door), "open" if "open" in unary.get(door, set()) else "closed")
    open_places = {HELD, floor_of(room)}
    for thing, (relation, place) in where.items():
        if relation == "at" and place == here:
            attributes = unary.get(thing, set())
            if attributes & {"open", "closed", "locked"}:
                seen[one_word(thing)] = line(room, one_word(thing), "open" if "open" in attributes else "closed")
                if "open" in attributes:
                    open_places.add(one_word(thing))
            elif types[thing] in ("s", "stove", "toaster"):
                seen[one_word(thing)] = line(room, one_word(thing), SURFACE)
                open_places.add(one_word(thing))
    for thing, (_, place) in where.items():
        spot = HELD if types.get(place) == "I" else floor_of(room) if place == here else one_word(place)
        if types[thing] in ("f", "o", "meal", "k") and spot in open_places:
            seen[one_word(thing)] = line(spot, one_word(thing), attributes_text(types[thing], unary.get(thing, set())))
    return room, {d: one_word(other) for d, other in beyond.items()}, seen, open_places
