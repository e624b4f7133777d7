"""Real games from a task's text: they behave as the game that the text came from, and what cannot be won is called so."""

import pytest

pytest.importorskip("textworld")

from dreamgym.core.env import RealSteps
from dreamgym.core.state import state_of_text
from dreamgym.core.types import Task
from dreamgym.curriculum.worlds import LoggedWorlds, placed
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.envs.textworld.behaviours import orderly
from dreamgym.envs.textworld.collect import Recorder
from dreamgym.envs.textworld.env import TextWorldEnv, look_at
from dreamgym.envs.textworld.panels import panels, reserved
from dreamgym.envs.textworld.realise import Unbuildable, realise, solved
from dreamgym.pipeline.logs import load_logs, tasks_of
from dreamgym.pipeline.stages import shipped, shipped_logs

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")


@pytest.fixture(scope="module")
def logged() -> tuple[dict[str, Task], list]:
    episodes = shipped_logs(shipped("logs-standard.jsonl.xz"), TextWorldAdapter("standard"))[:27]
    return tasks_of(episodes), episodes


def test_a_realised_game_behaves_as_the_one_it_was_told_of(logged) -> None:
    tasks, episodes = logged
    env, steps = TextWorldEnv(RealSteps()), 0
    for e in episodes:
        observation, info = env.reset_sync(realise(tasks[e.task.id]))
        assert info["instruction"] == e.task.instruction
        for t in e.transitions:
            assert state_of_text(observation) == t.state, (e.id, steps)
            answer = env.step_sync(t.action)
            observation, steps = answer.observation, steps + 1
            assert answer.reward == t.reward
        if e.transitions:
            assert state_of_text(observation) == e.transitions[-1].next_state
    assert steps > 150


def test_a_logged_task_can_be_won_and_one_whose_food_is_nowhere_cannot(logged) -> None:
    task, counter = next(iter(logged[0].values())), RealSteps(purpose="audit")
    proof = solved(task, counter)
    assert (proof.solvable, proof.reason) == (True, "won")
    assert counter.counts == {"audit": proof.steps}
    world = " ".join((*task.first_state, *task.sheet))
    food = next(f for f in ("carrot", "banana", "lettuce", "pork_chop") if f not in world)
    without = task.model_copy(update={"instruction": f"cook {food} fried diced"})
    assert solved(without, counter).reason == "max_steps"
    blunt = task.model_copy(update={"first_state": tuple(s for s in task.first_state if "knife" not in s)})
    assert not solved(blunt, counter).solvable, "nothing is added: without a knife nothing is cut"


def test_a_food_that_was_written_into_a_world_can_be_cooked_there() -> None:
    tasks = list(tasks_of(load_logs([shipped("logs-standard.jsonl.xz")])).values())
    worlds, world, counter = LoggedWorlds(tasks), tasks[0], RealSteps(purpose="audit")
    food = next(f for f in ("carrot", "banana", "lettuce", "pork_chop") if placed(world, f) is None)
    homes = [worlds.furnished(world, food, placed(t, food)) for t in worlds.alike(world, food)]
    home = next(h for h in homes if isinstance(h, Task))
    wanted = {"instruction": f"cook {food} fried diced"}
    assert solved(home.model_copy(update=wanted), counter).solvable
    assert not solved(world.model_copy(update=wanted), counter).solvable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": "cook carrot burned diced"}, "no recipe"),
        ({"instruction": "cook carrot fried diced and"}, "no recipe"),
        ({"instruction": "eat carrot"}, "no recipe"),
        ({"instruction": "cook unicorn fried diced"}, "no food 'unicorn'"),
        ({"first_state": ("[counter] carrot: raw uncut",), "sheet": ()}, "no room"),
        ({"first_state": ("[kitchen] room: moon",), "sheet": ()}, "no furniture 'moon'"),
        ({"first_state": ("[kitchen] room: counter", "[counter] carrot: fried uncut"), "sheet": ()}, "before anything was done"),
        ({"first_state": ("[kitchen] room: counter", "[moon] carrot: raw uncut"), "sheet": ()}, "which its world does not have"),
        ({"sheet": ("[held] carrot: raw uncut",)}, "into the hand"),
        ({"first_state": ("[kitchen] you: here", "[kitchen] kitchen_north_to: pantry", "[hall] hall_south_to: kitchen")}, "its map"),
        ({"first_state": ("[kitchen] room: counter", "[counter] unicorn: fresh uncut"), "sheet": ()}, "no thing 'unicorn'"),
    ],
)
def test_what_is_no_game_is_not_built(change: dict[str, object], reason: str) -> None:
    task = Task(id="t", instruction="cook carrot fried diced", first_state=("[kitchen] room: counter",)).model_copy(update=change)
    with pytest.raises(Unbuildable, match=reason):
        realise(task)
    assert reason in solved(task, RealSteps()).reason


def test_a_game_of_several_rooms_is_realised_with_its_map() -> None:
    counter = RealSteps()
    seen = look_at("hard", 2, "train", counter, "rooms")
    episodes = list(Recorder(counter, 0, orderly, "rooms", longer=2).game(seen, demonstrate=True))
    task = tasks_of(episodes)[seen.id]
    assert solved(task, counter).solvable
    env = TextWorldEnv(counter, "rooms")
    observation, _ = env.reset_sync(realise(task))
    for t in episodes[0].transitions:
        missing = set(t.state) - set(state_of_text(observation))
        assert set(state_of_text(observation)) <= set(t.state)
        assert all(s.endswith(": way") for s in missing), "behind an exit that nobody took nothing is built"
        observation = env.step_sync(t.action).observation


def test_a_recipe_in_another_order_is_the_same_and_one_that_takes_too_long_is_not_solvable(logged) -> None:
    task = next(t for t in logged[0].values() if " and " in t.instruction)
    first, second = task.instruction.removeprefix("cook ").split(" and ")
    turned = task.model_copy(update={"instruction": f"cook {second} and {first}"})
    assert solved(turned, RealSteps()).solvable
    assert solved(turned.model_copy(update={"difficulty": "standard"}), RealSteps()).solvable


def test_what_is_kept_for_the_panel_unseen_is_not_trained_on() -> None:
    adapter = TextWorldAdapter("standard")
    kept = {pair for game in panels("standard", "unseen") for pair in game.recipe if reserved(pair)}
    assert kept
    for food, cooked, cut in kept:
        assert not adapter.allowed(f"cook {food.replace(' ', '_')} {cooked} {cut}")
    assert all(adapter.allowed(instruction_of_recipe(game.recipe)) for game in panels("standard", "train"))


def instruction_of_recipe(recipe: tuple[tuple[str, str, str], ...]) -> str:
    return "cook " + " and ".join(f"{food.replace(' ', '_')} {cooked} {cut}" for food, cooked, cut in recipe)
