"""A user's own file of episodes, held against itself: every error names file, line and step.

    episodes = read_user_logs(Path("episodes.jsonl"), evaluated=lambda: {"shop/2000": "test"})

A log that contradicts itself would teach the experience model nonsense, and one that holds a task of the evaluation would
make every result worthless; both are refused before anything is written.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

from dreamgym.core.errors import DataError, PanelLeakError
from dreamgym.core.files import open_text
from dreamgym.core.state import InconsistentChange, State, apply_change, make_state
from dreamgym.core.types import Episode, Transition
from dreamgym.pipeline.logs import load_logs

_ENDS = {"won": "won", "lost": "lost"}


def read_user_logs(
    path: Path, evaluated: Callable[[], Mapping[str, str]], wrong_name: Callable[[str], str] | None = None
) -> list[Episode]:
    """The episodes of ``path``, states in their canonical order. ``evaluated``: task id -> panel, of all that is evaluated on; asked only
    once the file is sound, because an environment may have to build its games first. ``wrong_name``: what is wrong with a task's name,
    where the environment can tell.

    Raises ``DataError`` where an episode contradicts itself (a change that does not fit its state, a state that the step before does not
    lead to, an end that is not that of the last step, a branch from another state) or another one (its id, or another instruction for the
    same task), and ``PanelLeakError`` where an episode plays an evaluation task, whatever panel it claims.
    """
    episodes = load_logs([path])
    with open_text(path, "r") as f:
        lines = [n for n, text in enumerate(f, 1) if text.strip()]
    sane, place, told = list[Episode](), dict[str, str](), dict[str, tuple[str, str]]()
    for n, e in zip(lines, episodes, strict=True):
        where = f"{path}:{n}: episode {e.id}"
        if e.id in place:
            raise DataError(f"{where}: field id: {place[e.id]} has it too; give every episode its own")
        text, at = told.setdefault(e.task.id, (e.task.instruction, where))
        if text != e.task.instruction:
            raise DataError(f"{where}: field task.instruction: {e.task.instruction!r}, but {at} says {text!r} of the same task {e.task.id}")
        if wrong_name and (why := wrong_name(e.task.id)):
            raise DataError(f"{where}: field task.id: {why}")
        place[e.id] = where
        sane.append(_checked(e, where))
    panels = evaluated()
    for where, e in zip(place.values(), sane, strict=True):
        if panel := panels.get(e.task.id):
            raise PanelLeakError(f"{where}: its task {e.task.id} is of the panel {panel}, which this run evaluates on; delete this line")
    return sane


def _checked(episode: Episode, where: str) -> Episode:
    last = episode.transitions[-1].outcome if episode.transitions else "go"
    if episode.valid and last != _ENDS.get(episode.stop.value, "go"):
        raise DataError(f"{where}: field stop: {episode.stop.value}, but the last step's outcome is {last}; mend or delete this line")
    for i, t in enumerate(episode.steps):
        if episode.valid and t.reward is None:
            raise DataError(f"{where}: step {i}: field reward: null in an episode with a valid end; give the reward, or delete this line")
        if t.outcome == "won" and t.reward is not None and t.reward <= 0:
            raise DataError(f"{where}: step {i}: field reward: {t.reward:g} for a step whose outcome is won; mend or delete this line")
    steps = tuple(_sorted(t, f"{where}: transitions.{i}") for i, t in enumerate(episode.transitions))
    for i, (before, after) in enumerate(pairwise(steps), 1):
        _equal(after.state, before.next_state, f"{where}: transitions.{i}: field state: it is not what transitions.{i - 1} leads to")
    task = episode.task.model_copy(update={"first_state": make_state(episode.task.first_state), "sheet": make_state(episode.task.sheet)})
    if steps:
        _equal(task.first_state, steps[0].state, f"{where}: field task.first_state: the first step begins in another state")
    branches = []
    for i, b in enumerate(episode.branches):
        if not 0 <= b.at < len(steps):
            raise DataError(f"{where}: branches.{i}: field at: {b.at}, but the episode has the steps 0 to {len(steps) - 1}")
        step = _sorted(b.transition, f"{where}: branches.{i}")
        _equal(step.state, steps[b.at].state, f"{where}: branches.{i}: field state: it is not that before step {b.at}")
        branches.append(b.model_copy(update={"transition": step}))
    return episode.model_copy(update={"task": task, "transitions": steps, "branches": tuple(branches)})


def _equal(state: State, wanted: State, what: str) -> None:
    if apart := sorted({*state} ^ {*wanted}):
        raise DataError(f"{what} (lines that only one of them has: {', '.join(map(repr, apart[:3]))}); mend or delete this line")


def _sorted(t: Transition, where: str) -> Transition:
    states: dict[str, State] = {name: make_state(getattr(t, name)) for name in ("state", "removed", "added")}
    sane = t.model_copy(update=states)
    try:
        apply_change(sane.state, sane.change)
    except InconsistentChange as e:
        raise DataError(f"{where}: {e}; mend or delete this line") from e
    return sane
