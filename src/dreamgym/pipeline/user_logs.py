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


def read_user_logs(path: Path, evaluated: Callable[[], Mapping[str, str]]) -> list[Episode]:
    """The episodes of ``path``, states in their canonical order. ``evaluated``: task id -> panel, of all that is evaluated on; asked only
    once the file is sound, because an environment may have to build its games first.

    Raises ``DataError`` where a change does not fit its state, a state is not what the step before leads to, or an end is not that of
    the last step, and
    ``PanelLeakError`` where an episode plays an evaluation task, whatever panel it claims.
    """
    episodes = load_logs([path])
    with open_text(path, "r") as f:
        lines = [n for n, text in enumerate(f, 1) if text.strip()]
    named = {f"{path}:{n}: episode {e.id}": e for n, e in zip(lines, episodes, strict=True)}
    sane = [_checked(e, where) for where, e in named.items()]
    panels = evaluated()
    for where, e in named.items():
        if panel := panels.get(e.task.id):
            raise PanelLeakError(f"{where}: its task {e.task.id} is of the panel {panel}, which this run evaluates on; delete this line")
    return sane


def _checked(episode: Episode, where: str) -> Episode:
    last = episode.transitions[-1].outcome if episode.transitions else "go"
    if last != _ENDS.get(episode.stop.value, "go"):
        raise DataError(f"{where}: field stop: {episode.stop.value}, but the last step's outcome is {last}; mend or delete this line")
    for i, t in enumerate(episode.steps):
        if episode.valid and t.reward is None:
            raise DataError(f"{where}: step {i}: field reward: null in an episode with a valid end; give the reward, or delete this line")
    steps = tuple(_sorted(t, f"{where}: transitions.{i}") for i, t in enumerate(episode.transitions))
    for i, (before, after) in enumerate(pairwise(steps), 1):
        if after.state != before.next_state:
            raise DataError(
                f"{where}: transitions.{i}: field state: it is not what transitions.{i - 1} leads to"
                f" (lines that only one of them has: {sorted({*after.state} ^ {*before.next_state})[:3]}); mend or delete this line"
            )
    branches = tuple(
        b.model_copy(update={"transition": _sorted(b.transition, f"{where}: branches.{i}")}) for i, b in enumerate(episode.branches)
    )
    task = episode.task.model_copy(update={"first_state": make_state(episode.task.first_state), "sheet": make_state(episode.task.sheet)})
    return episode.model_copy(update={"task": task, "transitions": steps, "branches": branches})


def _sorted(t: Transition, where: str) -> Transition:
    states: dict[str, State] = {name: make_state(getattr(t, name)) for name in ("state", "removed", "added")}
    sane = t.model_copy(update=states)
    try:
        apply_change(sane.state, sane.change)
    except InconsistentChange as e:
        raise DataError(f"{where}: {e}; mend or delete this line") from e
    return sane
