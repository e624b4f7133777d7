"""Recording the offline logs: demonstrations scarce, exploration plentiful, every real step counted.

Per training game: two noisy cooks that give up before the meal is eaten, a premature, a random, a garbled, a seeking, a fussing
and a moving explorer, and along most of them counterfactual single steps (the prefix is re-played, another action is taken, its
real outcome kept).
Only the first games (``DEMONSTRATIONS``) also get a successful episode of a demonstrator.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dreamgym.core.env import RealSteps
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Branch, Episode, StopReason, Task, Transition
from dreamgym.envs.textworld.behaviours import (
    Scene,
    absent,
    admissible_like,
    anything,
    expert,
    fuss,
    garbled,
    malformed,
    move,
    near_miss,
    one_by_one,
    orderly,
    premature,
    read_scene,
    seek,
)
from dreamgym.envs.textworld.env import ENV, TextWorldEnv
from dreamgym.envs.textworld.mapper import View

Behaviour = Callable[[Scene, np.random.Generator], str]
BRANCHES = 3
"""Counterfactual steps per visited state."""
DEMONSTRATIONS: dict[str, tuple[int, Behaviour]] = {
    "easy": (18, expert),
    "standard": (60, orderly),
    "hard": (200, one_by_one),
    "mixed": (150, one_by_one),
}
"""Training games with a successful episode in the logs, and who plays it; all others hold exploration only."""


@dataclass
class Recorder:
    """Plays one game after another in the real environment and keeps what happened."""

    counter: RealSteps
    seed: int = 0
    demonstrator: Behaviour = expert
    view: View = "carried"
    cap: int | None = None
    """Steps after which an episode is truncated; None = as its game's level has it."""
    longer: int = 1
    """Explorers go on this many times as long: there is more to do where there are more rooms and foods."""

    def game(self, task: Task, demonstrate: bool) -> Iterator[Episode]:
        """All logged episodes of one training game."""
        env = TextWorldEnv(self.counter, self.view, self.cap)
        if demonstrate:
            yield self.episode(env, task, "expert", self.demonstrator, branches=0, give_up=None)
        for i in range(2):
            rng = keyed_rng(self.seed, task.id, "noisy", i)
            noise = float(rng.uniform(0.1, 0.5))
            yield self.episode(env, task, "noisy", _noisy(noise), branches=BRANCHES, give_up=self.longer * int(rng.integers(4, 16)), draw=i)
        rng = keyed_rng(self.seed, task.id, "length")
        yield self.episode(env, task, "premature", _noisy(0.5, premature), branches=1, give_up=self.longer * int(rng.integers(4, 12)))
        yield self.episode(env, task, "random", anything, branches=1, give_up=self.longer * int(rng.integers(6, 16)))
        # what a policy that samples words sends, looking where things are not, working on what the recipe does not want, tidying
        yield self.episode(env, task, "garbled", _noisy(0.65, garbled), branches=0, give_up=14 * self.longer)
        yield self.episode(env, task, "seeking", _noisy(0.65, seek), branches=0, give_up=14 * self.longer)
        yield self.episode(env, task, "fussing", _noisy(0.15, anything, fuss), branches=0, give_up=16 * self.longer)
        yield self.episode(env, task, "moving", move, branches=0, give_up=18 * self.longer)

    def episode(
        self, env: TextWorldEnv, task: Task, name: str, act: Behaviour, branches: int, give_up: int | None, draw: int = 0
    ) -> Episode:
        """One episode of ``act``; it gives up after ``give_up`` steps, and always before it would eat the meal."""
        state = state_of_text(env.reset_sync(task.id)[0])
        steps: list[Transition] = []
        tried: list[Branch] = []
        stop: StopReason | None = None
        while stop is None:
            rng = keyed_rng(self.seed, task.id, name, draw, len(steps))
            scene = read_scene(task.instruction, state)
            prefix = [t.action for t in steps]
            tried += [Branch(at=len(steps), transition=t) for t in self._branches(env, task, prefix, scene, state, branches, rng)]
            action = act(scene, rng)
            if give_up is not None and (len(steps) >= give_up or (action == "eat meal" and scene.place.get("meal") == "held")):
                stop = StopReason.ABANDONED
                break
            answer = env.step_sync(action)
            after = state_of_text(answer.observation)
            stop = stop_of(answer)
            steps.append(transition_of(state, action, answer, after))
            state = after
        return Episode(
            id=f"{task.id}#{name}{draw}",
            env=ENV,
            task=task,
            source="real",
            behaviour=name,
            seed=self.seed,
            transitions=tuple(steps),
            branches=tuple(tried),
            stop=stop,
        )

    def _branches(
        self, env: TextWorldEnv, task: Task, prefix: list[str], scene: Scene, state: tuple[str, ...], n: int, rng: np.random.Generator
    ) -> Iterator[Transition]:
        """``n`` other actions from the current state; leaves ``env`` where it was."""
        moved = False
        done: set[str] = set()
        for i in range(n):
            act = (near_miss, _mixed, near_miss)[i % 3] if rng.random() < 0.8 else expert
            action = act(scene, rng)
            wins = action.strip() == "eat meal" and scene.place.get("meal") == "held"
            if action in done or wins:
                continue
            done.add(action)
            if moved:
                self._replay(env, task, prefix)
            answer = env.step_sync(action)
            after = state_of_text(answer.observation)
            moved = after != state or stop_of(answer) is not None or env.at_cap
            yield transition_of(state, action, answer, after)
        if done:
            self._replay(env, task, prefix)

    def _replay(self, env: TextWorldEnv, task: Task, prefix: list[str]) -> None:
        env.reset_sync(task.id)
        for action in prefix:
            env.step_sync(action)


def _mixed(scene: Scene, rng: np.random.Generator) -> str:
    return (absent, malformed, premature, admissible_like)[int(rng.integers(4))](scene, rng)


def _noisy(noise: float, other: Behaviour = anything, usual: Behaviour = expert) -> Behaviour:
    return lambda scene, rng: other(scene, rng) if rng.random() < noise else usual(scene, rng)
