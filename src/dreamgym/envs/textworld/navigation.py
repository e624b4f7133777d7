"""Finding one's way in a cooking game of several rooms, from the state alone."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from dreamgym.core.state import LINE, State
from dreamgym.envs.textworld.rooms import DOOR, SURFACE, YOU

_FURNITURE = (SURFACE, "open", "closed")


@dataclass(frozen=True)
class Rooms:
    """What a state says of the rooms."""

    here: str
    exits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Room -> direction -> the door in it, or ``way``."""
    ends: dict[str, dict[str, str]] = field(default_factory=dict)
    """Room -> direction -> the room that it leads to, where that is known."""
    doors: dict[str, str] = field(default_factory=dict)
    """Door -> open or closed."""
    furniture: dict[str, str] = field(default_factory=dict)
    """What stands where."""
    signs: frozenset[str] = frozenset()
    """Kinds of the lines that are about the map, not about things to handle."""

    def room_of(self, spot: str) -> str | None:
        """The room of a piece of furniture or a floor; None where it is not known."""
        if spot == "floor":
            return self.here
        return spot.removesuffix("_floor") if spot.endswith("_floor") else self.furniture.get(spot)

    def through(self, room: str, direction: str) -> str:
        """The next command on the way through an exit of this room: its door has to be open."""
        door = self.exits[room][direction]
        return f"open {door}" if self.doors.get(door) == "closed" else f"go {direction}"


def read_rooms(state: State) -> Rooms | None:
    """The map of a state; None where it tells of no rooms."""
    lines = [(m["place"], m["kind"], m["text"] or "") for m in map(LINE.fullmatch, state) if m]
    here = next((p for p, k, _ in lines if k == YOU), None)
    if here is None:
        return None
    rooms, signs = Rooms(here), {YOU}
    for place, kind, text in lines:
        direction = kind.removeprefix(f"{place}_")
        if place == DOOR:
            rooms.doors[kind] = text
        elif kind.startswith(f"{place}_") and direction.endswith("_to"):
            rooms.ends.setdefault(place, {})[direction.removesuffix("_to")] = text
        elif kind.startswith(f"{place}_"):
            rooms.exits.setdefault(place, {})[direction] = text
        elif text in _FURNITURE:
            rooms.furniture[kind] = place
            if text != SURFACE:
                continue
        else:
            continue
        signs.add(kind)
    return Rooms(here, rooms.exits, rooms.ends, rooms.doors, rooms.furniture, frozenset(signs))


def way_to(rooms: Rooms, goal: str) -> str | None:
    """The next command on the shortest known way to ``goal``; None where none is known."""
    return next((rooms.through(rooms.here, first) for room, first in _reached(rooms) if first and room == goal), None)


def explore(rooms: Rooms) -> str | None:
    """The next command towards the nearest exit that nobody knows the end of; None where all are known."""
    for room, first in _reached(rooms):
        unknown = [d for d in rooms.exits.get(room, {}) if d not in rooms.ends.get(room, {})]
        if unknown:
            return rooms.through(rooms.here, first or unknown[0])
    return None


def _reached(rooms: Rooms) -> Iterator[tuple[str, str]]:
    """Rooms, the nearest first, each with the direction in which its shortest known way begins ("" for the present one)."""
    queue, seen = deque([(rooms.here, "")]), {rooms.here}
    while queue:
        room, first = queue.popleft()
        yield room, first
        for direction, beyond in rooms.ends.get(room, {}).items():
            if beyond not in seen and direction in rooms.exits.get(room, {}):
                seen.add(beyond)
                queue.append((beyond, first or direction))
