"""What a failed cook did achieve is a task that can be done, by what the cook did: real games."""

import numpy as np
import pytest

pytest.importorskip("textworld", reason="needs the extra [textworld]")

from dreamgym.core.env import RealSteps
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.envs.textworld.behaviours import CUT
from dreamgym.envs.textworld.env import TextWorldEnv, View, look_at, recipe_text
from dreamgym.envs.textworld.hindsight import achieved, finished
from dreamgym.envs.textworld.navigation import read_rooms
from dreamgym.envs.textworld.realise import realise

FETCH = ["take red_potato from counter", "take knife from counter"]


def played(task: Task, actions: list[str], game: str | None = None, view: View = "carried") -> Episode:
    """An episode of the real game."""
    env = TextWorldEnv(RealSteps(), view)
    state, steps, stop = state_of_text(env.reset_sync(game or task.id)[0]), list[Transition](), None
    for action in actions:
        answer = env.step_sync(action)
        after = state_of_text(answer.observation)
        steps.append(transition_of(state, action, answer, after))
        state, stop = after, stop_of(answer)
        if stop is not None:
            break
    return Episode(
        id="e", env="textworld", task=task, source="real", behaviour="policy", transitions=tuple(steps), stop=stop or StopReason.ABANDONED
    )


@pytest.fixture(scope="module")
def asked() -> Task:
    return look_at("easy", 1, "train", RealSteps())


@pytest.mark.parametrize(
    ("right", "wrong", "dish"),
    [
        ("cook red_potato with stove", "dice red_potato with knife", "fried diced"),
        ("cook red_potato with stove", "chop red_potato with knife", "fried chopped"),
        ("slice red_potato with knife", "cook red_potato with oven", "roasted sliced"),
    ],
)
def test_the_dish_that_was_ready_and_its_own_actions_make_it(asked, right, wrong, dish):
    assert asked.instruction == "cook red_potato fried sliced"
    done = [*FETCH, right, wrong]
    episode = played(asked, [*done, "prepare meal"])
    assert episode.stop is StopReason.LOST
    feat = achieved(asked, episode)
    assert feat is not None
    text = feat.instruction
    assert text == f"cook red_potato {dish}"
    assert feat.solution == (*done, "prepare meal", "eat meal")
    assert TextWorldAdapter("easy").canonical(text) == text
    child = asked.model_copy(update={"id": "child", "instruction": text, "lineage": (asked.id,)})
    assert played(child, list(feat.solution), realise(child)).stop is StopReason.WON, "its solution is known"


@pytest.mark.parametrize(
    "actions",
    [
        ["open fridge"],
        [*FETCH, "slice red_potato with knife"],
        [*FETCH, "cook red_potato with stove"],
        [*FETCH, "cook red_potato with stove", "slice red_potato with knife"],
    ],
    ids=["nothing", "cut only", "cooked only", "what was asked"],
)
def test_what_is_not_finished_or_what_was_asked_is_no_new_task(asked, actions):
    assert achieved(asked, played(asked, actions)) is None


BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}


def test_what_is_finished_elsewhere_counts_where_a_meal_can_be_prepared():
    asked = look_at("hard", 1, "train", RealSteps(), "rooms")
    cook, state = TextWorldAdapter("hard").explorers()["expert"], asked.first_state
    env, rng, actions = TextWorldEnv(RealSteps(), "rooms"), np.random.default_rng(0), list[str]()
    env.reset_sync(asked.id)
    while "prepare meal" not in actions:
        actions.append(cook(asked.instruction, state, rng))
        state = state_of_text(env.step_sync(actions[-1]).observation)
    cut = next(a for a in reversed(actions) if a.split()[0] in CUT.values())
    there = [a for a in actions[:-1] if a != cut]
    kitchen = read_rooms(played(asked, there, view="rooms").transitions[-1].next_state)
    assert kitchen is not None
    assert kitchen.room_of("stove") == kitchen.here
    out = next(iter(kitchen.exits[kitchen.here]))
    away = [*there, *([step] if (step := kitchen.through(kitchen.here, out)).startswith("open") else []), f"go {out}", cut]
    other = asked.model_copy(update={"instruction": "cook carrot fried diced"})
    whole = recipe_text(finished(played(asked, away, view="rooms").transitions[-1].next_state))
    assert whole == asked.instruction
    feat = achieved(other, played(asked, away, view="rooms"))
    assert feat is None or feat.instruction != whole, "there is no preparing a meal where it was finished"
    feat = achieved(other, played(asked, [*away, f"go {BACK[out]}"], view="rooms"))
    assert feat is not None
    assert feat == (whole, (*away, f"go {BACK[out]}", "prepare meal", "eat meal"))
    assert played(asked, list(feat.solution), view="rooms").stop is StopReason.WON, "it is what the game asks for"
