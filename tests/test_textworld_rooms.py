"""Cooking games of several rooms: what a state tells of the map, that nothing hidden reaches it, and that one finds one's way."""

# ruff: noqa: E402 - the modules below need the optional package
import asyncio
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

textworld = pytest.importorskip("textworld")

from hypothesis import given
from hypothesis import strategies as st
from textworld.logic import Proposition

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.core.state import State, line, make_state, state_of_text
from dreamgym.core.types import Episode, StopReason
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.envs.textworld.behaviours import Scene, anything, orderly, read_scene
from dreamgym.envs.textworld.collect import Recorder
from dreamgym.envs.textworld.env import TextWorldEnv, instruction_of, look_at, recipe_in
from dreamgym.envs.textworld.games import OPTIONS, make_game
from dreamgym.envs.textworld.mapper import spaced
from dreamgym.envs.textworld.navigation import Rooms, explore, read_rooms, way_to
from dreamgym.envs.textworld.rooms import RoomsMapper
from dreamgym.envs.textworld.teacher import CookingTeacher
from dreamgym.experience.annotate import before_after

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")
Act = Callable[[Scene, np.random.Generator], str]


def walk(seed: int, *commands: str) -> list[tuple[tuple[Proposition, ...], State]]:
    """Facts and states of ``hard/<seed>`` at the start and after each command."""
    game, mapper = textworld.start(str(make_game("hard", seed)), textworld.EnvInfos(facts=True)), RoomsMapper()
    try:
        seen = [tuple(game.reset().facts)]
        for command in commands:
            seen.append(tuple(game.step(spaced(command))[0].facts))
        return [(facts, mapper.observe(facts)) for facts in seen]
    finally:
        game.close()


def test_the_map_grows_with_what_was_seen_and_stays_known() -> None:
    # hard/2 begins in a pantry behind a closed door
    states = [s for _, s in walk(2, "open plain door", "go south", "take knife from table", "go south", "drop knife", "go north")]
    start, opened, kitchen, taken, corridor, dropped, back = states
    assert start == ("[door] plain_door: closed", "[pantry] pantry_south: plain_door", "[pantry] shelf: surface", "[pantry] you: here")
    assert set(opened) ^ set(start) == {"[door] plain_door: closed", "[door] plain_door: open"}
    assert {"[kitchen] you: here", "[kitchen] kitchen_north_to: pantry", "[pantry] pantry_south_to: kitchen"} <= set(kitchen)
    assert "[pantry] shelf: surface" in kitchen
    assert "[kitchen] kitchen_south: way" in kitchen
    assert not [s for s in kitchen if "kitchen_south_to" in s], "nobody has been there"
    assert set(taken) ^ set(kitchen) == {"[table] knife: sharp", "[held] knife: sharp"}
    assert "[held] knife: sharp" in corridor
    assert "[kitchen] fridge: closed" in corridor
    assert "[corridor_floor] knife: sharp" in dropped
    assert "[corridor_floor] knife: sharp" in back
    assert "[kitchen] you: here" in back


def test_what_other_rooms_and_closed_containers_hold_does_not_reach_the_state() -> None:
    for facts, _ in walk(2, "open plain door", "go south"):
        here = next(f.arguments[1].name for f in facts if f.name == "at" and f.arguments[0].type == "P")
        beside = {v.name for f in facts if f.name in ("at", "link") and here in (v.name for v in f.arguments) for v in f.arguments}
        hidden = [f for f in facts if f.name == "in" or (f.name in ("at", "on") and f.arguments[1].name not in beside)]
        secrets = {f.arguments[0].name for f in hidden} - beside
        assert len(secrets) > 5
        left = tuple(f for f in facts if f not in hidden and not (f.arguments[0].name in secrets and len(f.arguments) == 1))
        assert RoomsMapper().observe(facts) == RoomsMapper().observe(left)


@pytest.mark.parametrize(("level", "seed"), [("easy", 1), ("standard", 4), ("standard", 10)])
def test_the_recipe_in_the_facts_is_that_of_the_cookbook(level: str, seed: int) -> None:
    game = textworld.start(str(make_game(level, seed)), textworld.EnvInfos(facts=True))
    try:
        game.reset()
        book, _, _ = game.step("examine cookbook")
        assert recipe_in(book.facts) == instruction_of(book.feedback)
    finally:
        game.close()


def test_a_cook_finds_the_kitchen_and_wins_and_the_teacher_follows() -> None:
    teacher, counter = CookingTeacher(), RealSteps()
    seen, told = Counter[str](), Counter[bool]()
    for seed in (2, 3):
        task = look_at("hard", seed, "train", counter, "rooms")
        episodes = list(Recorder(counter, 0, orderly, "rooms", longer=2).game(task, demonstrate=True))
        assert episodes[0].stop == StopReason.WON
        assert any(t.action.startswith("go ") for t in episodes[0].transitions)
        for t in (t for e in episodes for t in e.steps):
            told[teacher.explain(task, t) == before_after(t)] += 1
            seen[t.action.partition(" ")[0]] += 1
        check_continuity(episodes)
    assert told[True] <= 0.01 * told.total(), "the teacher's rules explain what happens"
    assert min(seen[verb] for verb in ("go", "open", "take", "cook", "prepare")) >= 5


def check_continuity(episodes: list[Episode]) -> None:
    for e in episodes:
        state = e.task.first_state
        for t in e.transitions:
            assert t.state == state
            state = t.next_state


def test_the_environment_states_the_recipe_where_the_cookbook_is_not_in_sight() -> None:
    env = TextWorldEnv(RealSteps(), "rooms")
    text, info = env.reset_sync("textworld/hard/2")
    assert info["instruction"] == "cook green_hot_pepper roasted sliced and red_onion roasted diced and white_onion roasted sliced"
    assert "cookbook" not in text
    assert state_of_text(text)[-1] == "[pantry] you: here"


MAP = Rooms(
    here="hall",
    exits={"hall": {"north": "way", "east": "oak_door"}, "attic": {"south": "way", "west": "way"}},
    ends={"hall": {"north": "attic"}, "attic": {"south": "hall"}},
    doors={"oak_door": "closed"},
    furniture={"bed": "attic"},
)


def test_ways() -> None:
    assert way_to(MAP, "attic") == "go north"
    assert way_to(MAP, "hall") is None, "one is there"
    assert way_to(MAP, "cellar") is None
    assert explore(MAP) == "open oak_door", "the nearest unknown end"
    behind = Rooms("hall", MAP.exits, {"hall": {"north": "attic", "east": "shed"}, "attic": {"south": "hall"}}, {"oak_door": "open"})
    assert explore(behind) == "go north", "the attic has an exit that nobody took"
    assert way_to(behind, "shed") == "go east"
    assert explore(Rooms("cell")) is None
    assert MAP.room_of("bed") == "attic"
    assert MAP.room_of("attic_floor") == "attic"
    assert MAP.room_of("moon") is None


def test_one_room_tells_of_no_map() -> None:
    assert read_rooms(("[kitchen] room: counter stove", "[kitchen] fridge: closed")) is None


ODD = st.builds(
    line,
    st.sampled_from(["held", "counter", "kitchen", "kitchen_floor", "door", "pantry"]),
    st.sampled_from(["you", "kitchen_north", "kitchen_north_to", "pantry_south_to", "carrot", "knife", "plain_door", "fridge", "meal"]),
    st.sampled_from(["here", "way", "pantry", "plain_door", "closed", "fresh uncut", "surface", ""]),
)


@given(st.lists(ODD, min_size=1, max_size=9).map(make_state), st.integers(0, 99))
def test_everybody_acts_on_whatever_a_dream_may_show(state: State, seed: int) -> None:
    rng = np.random.default_rng(seed)
    state = make_state([*state, "[kitchen] you: here"])
    assert isinstance(anything(read_scene("cook carrot fried sliced", state), rng), str)
    for explorer in TextWorldAdapter("easy").explorers().values():
        assert isinstance(explorer("cook carrot fried sliced", state, rng), str)


def test_a_level_of_several_rooms_is_recorded_in_its_view() -> None:
    counter = RealSteps(purpose="logs")
    logged = list(TextWorldAdapter("hard").collect(counter, 1, 0))
    assert {e.task.panel for e in logged} == {"train"}
    assert {e.task.difficulty for e in logged} == {"hard"}
    assert all(any(s.endswith("you: here") for s in t.state) for e in logged for t in e.steps)
    ends = {e.behaviour: e.stop for e in logged}
    assert ends.pop("expert") is StopReason.WON
    assert set(ends.values()) <= {StopReason.ABANDONED, StopReason.LOST}, "explorers win nothing"
    assert counter.total > sum(len(e.steps) for e in logged), "prefixes that are re-played for counterfactuals count too"


def test_the_pool_has_games_of_every_kind_and_one_cap() -> None:
    adapter = TextWorldAdapter("mixed")
    tasks = adapter.tasks("test", len(OPTIONS))
    assert {t.difficulty for t in tasks} == set(OPTIONS)
    env = adapter.env(RealSteps())
    try:
        easy = next(t for t in tasks if t.difficulty == "easy")
        observation, _ = asyncio.run(env.reset(easy, 0))
        assert "you: here" in observation, "one view for all of them"
        ends = [asyncio.run(env.step("look")).truncated for _ in range(adapter.cap)]
    finally:
        asyncio.run(env.close())
    assert ends == [False] * 59 + [True], "a game of easy goes on as long as the others here"
    with pytest.raises(ConfigError, match="has no view 'current'"):
        TextWorldAdapter("mixed", "current")
