"""What a failed cook did achieve: the dish whose parts were ready (hindsight tasks, arXiv 2501.10893)."""

from dreamgym.core.state import LINE, State
from dreamgym.core.types import Episode, Feat, Task
from dreamgym.envs.textworld.behaviours import CUT, HEAT
from dreamgym.envs.textworld.env import recipe_text
from dreamgym.envs.textworld.mapper import HELD
from dreamgym.envs.textworld.navigation import read_rooms

MOST = 3
"""Foods of a dish."""
SERVED = ("prepare meal", "eat meal")


def achieved(task: Task, episode: Episode) -> Feat | None:
    """The recipe that the most finished foods fulfil which were in hand in the kitchen: the actions up to there, then ``SERVED``, do it."""
    dishes = [finished(t.next_state) if _in_kitchen(t.next_state) else {} for t in episode.transitions]
    at = max(range(len(dishes)), key=lambda n: len(dishes[n]), default=0)
    best = dishes[at] if dishes else {}
    text = recipe_text(best)
    if not 0 < len(best) <= MOST or text == task.instruction:
        return None
    return Feat(text, (*(t.action for t in episode.transitions[: at + 1]), *SERVED))


def _in_kitchen(state: State) -> bool:
    """Where a meal can be prepared: beside the stove, or anywhere in a world of one room."""
    rooms = read_rooms(state)
    return rooms is None or rooms.room_of("stove") == rooms.here


def finished(state: State) -> dict[str, list[str]]:
    """Foods in hand that are cooked and cut, and how."""
    found = {}
    for m in filter(None, map(LINE.fullmatch, state)):
        words = (m["text"] or "").split()
        if m["place"] == HELD and len(words) == 2 and words[0] in HEAT and words[1] in CUT:
            found[m["kind"]] = words
    return found
