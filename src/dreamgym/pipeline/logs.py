"""From files of logged episodes to tasks with world sheets, and the guard that keeps evaluation tasks out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from dreamgym.core.errors import DataError, PanelLeakError
from dreamgym.core.files import read_episodes
from dreamgym.core.types import EVALUATION, Episode, Task, sheet_in_hindsight


def load_logs(paths: Sequence[Path]) -> list[Episode]:
    """All real episodes of ``paths``. Raises ``PanelLeakError`` on an episode of an evaluation panel."""
    episodes = [e for path in paths for e in read_episodes(path)]
    if not episodes:
        raise DataError(f"{', '.join(map(str, paths))}: no episodes in there")
    for e in episodes:
        if e.task.panel in EVALUATION:
            raise PanelLeakError(f"episode {e.id} belongs to the panel {e.task.panel}: it may be evaluated on, never trained on")
        if e.source != "real":
            raise DataError(f"episode {e.id} was dreamed; logs hold real episodes only")
    return episodes


def tasks_of(episodes: Iterable[Episode]) -> dict[str, Task]:
    """Each logged task with its sheet: all that its episodes ever revealed (logs in hindsight)."""
    by_task: dict[str, list[Episode]] = defaultdict(list)
    for e in episodes:
        by_task[e.task.id].append(e)
    return {
        name: group[0].task.model_copy(update={"sheet": sheet_in_hindsight(group[0].task.first_state, group)})
        for name, group in by_task.items()
    }


def successes(episodes: Iterable[Episode]) -> list[Episode]:
    """The valid episodes that were won."""
    return [e for e in episodes if e.valid and e.real_success()]


def counts(episodes: Iterable[Episode]) -> dict[str, int]:
    """Episodes by behaviour and end, for every table that uses the logs."""
    found = Counter(f"{e.behaviour}/{e.stop}" for e in episodes)
    return dict(sorted(found.items()))
