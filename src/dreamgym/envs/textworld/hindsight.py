"""What a failed cook did achieve: the dish whose parts were ready (hindsight tasks, arXiv 2501.10893)."""

from dreamgym.core.state import LINE, State
from dreamgym.core.types import Episode, Task
from dreamgym.envs.textworld.behaviours import CUT, HEAT
from dreamgym.envs.textworld.env import recipe_text
from dreamgym.envs.textworld.mapper import HELD

MOST = 3
"""Foods of a dish."""


def achieved(task: Task, episode: Episode) -> str | None:
    """The recipe that the episode's most finished foods fulfil: the actions up to there, then ``prepare meal`` and ``eat meal``, do it."""
    dishes = [finished(t.next_state) for t in episode.transitions]
    best = max(dishes, key=len, default=dict[str, list[str]]())
    text = recipe_text(best)
    return text if 0 < len(best) <= MOST and text != task.instruction else None


def finished(state: State) -> dict[str, list[str]]:
    """Foods in hand that are cooked and cut, and how."""
    found = {}
    for m in filter(None, map(LINE.fullmatch, state)):
        words = (m["text"] or "").split()
        if m["place"] == HELD and len(words) == 2 and words[0] in HEAT and words[1] in CUT:
            found[m["kind"]] = words
    return found
