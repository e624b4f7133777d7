"""What a failed cook did achieve is a task that can be done, by what the cook did: real games."""

import pytest

pytest.importorskip("textworld", reason="needs the extra [textworld]")

from dreamgym.core.env import RealSteps
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.envs.textworld.env import TextWorldEnv, look_at
from dreamgym.envs.textworld.hindsight import achieved
from dreamgym.envs.textworld.realise import realise

FETCH = ["take red_potato from counter", "take knife from counter"]


def played(task: Task, actions: list[str], game: str | None = None) -> Episode:
    """An episode of the real game."""
    env = TextWorldEnv(RealSteps())
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
    text = achieved(asked, episode)
    assert text == f"cook red_potato {dish}"
    assert TextWorldAdapter("easy").canonical(text) == text
    child = asked.model_copy(update={"id": "child", "instruction": text, "lineage": (asked.id,)})
    assert played(child, [*done, "prepare meal", "eat meal"], realise(child)).stop is StopReason.WON, "its solution is known"


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
