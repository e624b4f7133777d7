"""TextWorld cooking as an ``Adapter``: panels as tasks, the cooking teacher, recording of logs."""

from collections.abc import Callable, Iterator

import numpy as np

from dreamgym.core.env import Env, RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.core.state import State
from dreamgym.core.types import Episode, Feat, Panel, Task
from dreamgym.envs.adapter import Explorer
from dreamgym.envs.textworld.behaviours import Scene, anything, expert, goal_of, near_miss, read_scene
from dreamgym.envs.textworld.collect import DEMONSTRATIONS, Recorder
from dreamgym.envs.textworld.env import ENV, TextWorldEnv, look_at, recipe_text
from dreamgym.envs.textworld.games import CAPS, LEVELS, ONE_ROOM, make_games, parse_task_id
from dreamgym.envs.textworld.hindsight import achieved
from dreamgym.envs.textworld.mapper import View, spaced
from dreamgym.envs.textworld.panels import check_game, panels, reserved
from dreamgym.envs.textworld.teacher import CookingTeacher
from dreamgym.envs.textworld.view import projected


class TextWorldAdapter:
    """One level of the cooking games, seen with or without what closed containers were seen to hold."""

    def __init__(self, level: str, view: str = "carried") -> None:
        if level not in LEVELS:
            raise ConfigError(f"env: textworld has no level {level!r}; levels are {', '.join(LEVELS)}")
        if view not in ("carried", "current"):
            raise ConfigError(f"env: textworld has no view {view!r}; views are carried, current")
        if view == "current" and level not in ONE_ROOM:
            raise ConfigError(f"env: textworld/{level} has no view 'current': its states tell of several rooms; leave it out")
        self.level = level
        self.view: View = "rooms" if level not in ONE_ROOM else "current" if view == "current" else "carried"
        self.name = ENV
        self.cap = CAPS[level]
        self.teacher = CookingTeacher()

    def env(self, counter: RealSteps) -> Env:
        return TextWorldEnv(counter, self.view, self.cap)

    def tasks(self, panel: Panel, limit: int) -> list[Task]:
        """Tasks by id alone (instruction and first state are read at reset), their games compiled and checked."""
        games = panels(self.level, panel)[:limit]
        make_games([parse_task_id(g.task) for g in games])
        for game in games:
            check_game(game)
        return [Task(id=g.task, instruction="", first_state=(), panel=panel, difficulty=parse_task_id(g.task)[0]) for g in games]

    def collect(self, counter: RealSteps, limit: int, seed: int) -> Iterator[Episode]:
        recorder, (demonstrations, _) = self.recorder(counter, seed), DEMONSTRATIONS[self.level]
        for i, game in enumerate(panels(self.level, "train")[:limit]):
            check_game(game)
            task = look_at(*parse_task_id(game.task), "train", counter, recorder.view)
            recorded = recorder.game(task, demonstrate=i < demonstrations)
            yield from map(projected, recorded) if self.view == "current" else recorded

    def recorder(self, counter: RealSteps, seed: int) -> Recorder:
        """Plays this level's games as its logs have them, which always tell what closed containers were seen to hold."""
        _, demonstrator = DEMONSTRATIONS[self.level]
        logged: View = "carried" if self.view == "current" else self.view
        return Recorder(counter, seed, demonstrator, logged, self.cap, longer=1 if self.level in ONE_ROOM else 2)

    def allowed(self, instruction: str) -> bool:
        """Whether a written task may be trained on: none of its food and preparation pairs is kept for the panel ``unseen``."""
        try:
            return not any(reserved((spaced(food), *how)) for food, how in goal_of(instruction).items())
        except (IndexError, ValueError):
            return True  # no recipe: the other checks refuse it

    def canonical(self, instruction: str) -> str:
        """The recipe as logged ones are worded, in the order of its foods; what is none stays as it is."""
        try:
            goal = goal_of(instruction)
            text = recipe_text({food: how for food, how in goal.items()})
        except (IndexError, ValueError, KeyError):
            return instruction
        return text if len(text.split()) == len(instruction.split()) else instruction  # nothing that is named twice is lost

    def achieved(self, task: Task, episode: Episode) -> Feat | None:
        """The recipe that a failed episode fulfilled, for hindsight tasks."""
        return achieved(task, episode)

    def explorers(self) -> dict[str, Explorer]:
        """Random, noisy, and two competent cooks, one of whom slips now and then: near misses for the audit."""
        return {
            "random": _scripted(anything),
            "noisy": _scripted(_slipping(0.3, anything)),
            "slipping": _scripted(_slipping(0.12, near_miss)),
            "expert": _scripted(expert),
        }


def _scripted(act: Callable[[Scene, np.random.Generator], str]) -> Explorer:
    def explorer(instruction: str, state: State, rng: np.random.Generator) -> str:
        return act(read_scene(instruction, state), rng)

    return explorer


def _slipping(noise: float, other: Callable[[Scene, np.random.Generator], str]) -> Callable[[Scene, np.random.Generator], str]:
    def act(scene: Scene, rng: np.random.Generator) -> str:
        return other(scene, rng) if rng.random() < noise else expert(scene, rng)

    return act
