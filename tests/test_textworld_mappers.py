"""What the state of a TextWorld game may know: two mappers that agree, nothing hidden, nothing consumed."""

# ruff: noqa: E402 - the modules below need the optional package
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

textworld = pytest.importorskip("textworld")

from hypothesis import given
from hypothesis import strategies as st
from textworld.logic import Proposition, Variable

from dreamgym.core.errors import DataError
from dreamgym.core.state import LINE, State, entity, line, make_state
from dreamgym.core.types import Panel
from dreamgym.envs.textworld import panels
from dreamgym.envs.textworld.adapter import TextWorldAdapter
from dreamgym.envs.textworld.behaviours import Scene, admissible_like, anything, expert, fuss, move, read_scene, seek
from dreamgym.envs.textworld.env import instruction_of
from dreamgym.envs.textworld.games import LEVELS, MIXED, ONE_ROOM, OPTIONS, content_hash, make_game, recipe_of
from dreamgym.envs.textworld.mapper import FactMapper, View, spaced
from dreamgym.envs.textworld.text_mapper import TextMapper, read_tour
from dreamgym.envs.textworld.view import visible_now
from dreamgym.pipeline.stages import shipped, shipped_logs

Act = Callable[[Scene, np.random.Generator], str]
Recipe = tuple[tuple[str, str, str], ...]

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")

UNSEEN_IN_TEXT = {"fresh", "uncut", "whole", "sharp", "plain", "edible"}
ATTRIBUTES = ("raw", "needs_cooking", "fried", "roasted", "burned", "cooked", "uncut", "chopped", "sliced", "diced", "edible", "inedible")
GAMES = [(level, seed) for level in ("easy", "standard") for seed in (1, 2, 4, 10, 22, 188)]


@dataclass(frozen=True)
class Moment:
    """What TextWorld says after a command."""

    action: str
    facts: tuple[Proposition, ...]
    description: str
    inventory: str
    lost: bool


def play(level: str, seed: int, act: Act, steps: int, rng_seed: int = 0) -> Iterator[Moment]:
    """An episode, from the reading of the cookbook; ``act`` sees the states of a ``FactMapper``."""
    wanted = textworld.EnvInfos(facts=True, description=True, inventory=True, won=True, lost=True)
    game = textworld.start(str(make_game(level, seed)), wanted)
    rng = np.random.default_rng(rng_seed)
    mapper, action = FactMapper(), "examine cookbook"
    try:
        game.reset()
        answer, _, _ = game.step(action)
        instruction = instruction_of(answer.feedback)
        for left in reversed(range(steps + 1)):
            facts = tuple(answer.facts)
            yield Moment(action, facts, answer.description, answer.inventory, answer.lost)
            if answer.won or answer.lost or not left:
                return
            action = act(read_scene(instruction, mapper.observe(facts)), rng) or "wait"
            answer, _, _ = game.step(spaced(action))
    finally:
        game.close()


def script(*actions: str) -> Act:
    left = iter(actions)
    return lambda scene, rng: next(left)


def mixed(noise: float) -> Act:
    return lambda scene, rng: (anything if rng.random() < noise else expert)(scene, rng)


def curious(scene: Scene, rng: np.random.Generator) -> str:
    """Moves things about and leaves no door closed for long."""
    doors = [k for k, text in scene.text.items() if text == "closed"]
    if doors and rng.random() < 0.4:
        return f"open {doors[int(rng.integers(len(doors)))]}"
    return admissible_like(scene, rng)


def slamming(scene: Scene, rng: np.random.Generator) -> str:
    """Opens and closes, and does something in between."""
    doors = [(k, text) for k, text in scene.text.items() if text in ("open", "closed")]
    if not doors or rng.random() < 0.4:
        return expert(scene, rng)
    door, text = doors[int(rng.integers(len(doors)))]
    return f"{'open' if text == 'closed' else 'close'} {door}"


def known_to_text(state: State) -> State:
    """A state without the words that no text shows."""
    lines = []
    for m in filter(None, map(LINE.fullmatch, state)):
        words = [w for w in (m["text"] or "").split() if w not in UNSEEN_IN_TEXT]
        lines.append(line(m["place"], m["kind"], " ".join(words)))
    return make_state(lines)


def about(state: State, place: str) -> set[str]:
    return {entity(text) for text in state if text.startswith(f"[{place}] ")}


def test_carried_states_projected_are_those_of_the_current_view() -> None:
    hidden = 0
    for level, seed in GAMES:
        for act in (expert, mixed(0.6), slamming):
            carried, current = FactMapper("carried"), FactMapper("current")
            for moment in play(level, seed, act, 20, seed):
                known, now = carried.observe(moment.facts), current.observe(moment.facts)
                assert visible_now(known) == now
                hidden += known != now
    assert hidden > 20, "things in closed containers"


def test_a_projected_episode_holds_together_and_opens_its_containers_anew() -> None:
    adapter = TextWorldAdapter("easy", "current")
    episodes = shipped_logs(shipped("logs-easy.jsonl.xz"), adapter)[:600]
    again = 0
    for e in episodes:
        seen: set[str] = {entity(s) for s in e.task.first_state}
        for a, b in pairwise(e.transitions):
            assert a.next_state == b.state
        for t in e.transitions:
            again += t.action.startswith("open") and any(entity(s) in seen and entity(s) not in map(entity, t.removed) for s in t.added)
            seen |= {entity(s) for s in t.added}
    assert again, "what was seen in a container before comes into sight once more"


@pytest.mark.parametrize("view", ["carried", "current"])
@pytest.mark.parametrize(("level", "seed"), GAMES)
def test_text_and_facts_give_the_same_states(level: str, seed: int, view: View) -> None:
    compared, places = 0, set()
    for act in (expert, mixed(0.3), mixed(0.9), curious):
        by_text, by_facts = TextMapper(view), FactMapper(view)
        for moment in play(level, seed, act, 15, seed):
            if moment.lost:  # the texts are those from before the last action, see below
                break
            state = by_text.observe(moment.description, moment.inventory)
            assert state == known_to_text(by_facts.observe(moment.facts)), (moment.action, moment.description)
            places |= {m["place"] for m in filter(None, map(LINE.fullmatch, state))}
            compared += 1
    assert compared >= 25
    assert len(places) >= 4, places


def test_texts_of_a_lost_game_are_those_from_before_the_loss() -> None:
    # the recipe of easy/1 wants its potato sliced
    wrong_cut = script("take knife", "take red potato", "dice red potato with knife")
    *_, before, after = play("easy", 1, wrong_cut, 3)
    assert after.lost
    assert (after.description, after.inventory) == (before.description, before.inventory)
    assert FactMapper().observe(after.facts) != FactMapper().observe(before.facts)


@pytest.mark.parametrize(
    ("tour", "expected"),
    [
        (
            "You see a fridge. Wow, check out the price tag on the fridge! A hundred big ones! You make out a closed oven, "
            "which looks usual, nearby.",
            {"fridge": "closed", "oven": "closed"},
        ),
        (
            "You see a gleam over in a corner, where you can see a table. But oh no! there's nothing on this piece of junk. "
            "Hm. Oh well An opened usual looking oven is in the corner. Empty! What kind of nightmare TextWorld is this?",
            {"table": "surface", "oven": "open"},
        ),
        (
            "Were you looking for a fridge? Because look over there, it's a fridge. Hmm. You always thought you'd be more "
            "excited to see a fridge in a room. Look over there! a kitchen island. On the kitchen island you make out a block "
            "of cheese, so there's that.",
            {"fridge": "closed", "kitchen_island": "surface"},
        ),
    ],
)
def test_remarks_of_the_tour_are_no_fixtures(tour: str, expected: dict[str, str]) -> None:
    assert read_tour(f"-= Kitchen =-\nYou're in a kitchen.\n\n{tour}\n\n")[0] == expected


def test_things_on_the_floor_and_in_hand_are_read_with_their_adjectives() -> None:
    description = "-= Kitchen =-\nHi.\n\nYou see a stove. But the thing is empty.\n\n\n\nThere is some milk and a knife on the floor."
    inventory = "You are carrying: a diced roasted green hot pepper, a burned block of cheese and a raw pork chop."
    assert TextMapper().observe(description, inventory) == (
        "[floor] knife:",
        "[floor] milk:",
        "[held] block_of_cheese: burned",
        "[held] green_hot_pepper: roasted diced",
        "[held] pork_chop: raw",
        "[kitchen] room: stove",
    )


def test_a_text_that_is_no_room_is_refused() -> None:
    with pytest.raises(DataError, match="no room"):
        TextMapper().observe("That's not a verb I recognise.", "You are carrying nothing.")


def with_other_secrets(facts: tuple[Proposition, ...], rng: np.random.Generator) -> tuple[Proposition, ...]:
    """The same scene to the eye: another fridge content, other states of it, another recipe."""
    fridge = next(v for f in facts if f.name == "closed" for v in f.arguments if v.name == "fridge")
    hidden = {f.arguments[0] for f in facts if f.name == "in" and f.arguments[1] == fridge}
    recipe = {v for f in facts for v in f.arguments if v.type == "ingredient"}
    kept = [f for f in facts if not (set(f.arguments) & (hidden | recipe)) and not f.name.startswith("ingredient_")]
    newcomers = [*(v for v in hidden if rng.random() < 0.5), Variable("truffle", "f"), Variable("ladle", "o")]
    for thing in newcomers:
        kept.append(Proposition("in", [thing, fridge]))
        kept += [Proposition(a, [thing]) for a in ATTRIBUTES if rng.random() < 0.4]
    kept += [Proposition(a, [v]) for v in recipe for a in ATTRIBUTES if rng.random() < 0.4]
    return tuple(kept[i] for i in rng.permutation(len(kept)))


@pytest.mark.parametrize(("level", "seed"), [("easy", 10), ("standard", 1), ("standard", 2)])
def test_hidden_facts_do_not_reach_the_state(level: str, seed: int) -> None:
    start, opened, closed = play(level, seed, script("open fridge", "close fridge"), 2)
    shown = FactMapper().observe(start.facts)
    assert "[kitchen] fridge: closed" in shown
    assert not about(shown, "fridge")
    rng = np.random.default_rng(seed)
    for _ in range(20):
        facts = with_other_secrets(start.facts, rng)
        assert set(facts) != set(start.facts)
        assert FactMapper().observe(facts) == shown

    mapper = FactMapper()
    mapper.observe(start.facts)
    content = about(mapper.observe(opened.facts), "fridge")
    assert content
    after = mapper.observe(closed.facts)
    assert "[kitchen] fridge: closed" in after
    assert about(after, "fridge") == content
    # what happens unseen behind the door stays unknown: the state holds what was seen last
    for _ in range(20):
        assert mapper.observe(with_other_secrets(closed.facts, rng)) == after


@pytest.mark.parametrize(("level", "seed"), [("easy", 10), ("standard", 1)])
@pytest.mark.parametrize("view", ["carried", "current"])
def test_only_the_carried_view_keeps_what_a_closed_fridge_holds(level: str, seed: int, view: View) -> None:
    by_facts, by_text = FactMapper(view), TextMapper(view)
    kept = []
    for moment in play(level, seed, script("open fridge", "close fridge"), 2):
        states = by_facts.observe(moment.facts), by_text.observe(moment.description, moment.inventory)
        kept.append([bool(about(s, "fridge")) for s in states])
    assert kept == [[False] * 2, [True] * 2, [view == "carried"] * 2]
    by_facts.reset()
    by_text.reset()
    assert not about(by_facts.observe(moment.facts), "fridge")
    assert not about(by_text.observe(moment.description, moment.inventory), "fridge")


@pytest.mark.parametrize(("level", "seed"), [("easy", 1), ("standard", 4)])
@pytest.mark.parametrize("view", ["carried", "current"])
def test_the_ingredients_of_a_prepared_meal_leave_the_state(level: str, seed: int, view: View) -> None:
    by_facts, by_text = FactMapper(view), TextMapper(view)
    foods = {name.replace(" ", "_") for name, _, _ in recipe_of(make_game(level, seed))}
    states: dict[str, tuple[State, State]] = {}
    for moment in play(level, seed, expert, 20):
        states[moment.action] = by_facts.observe(moment.facts), by_text.observe(moment.description, moment.inventory)
    for prepared, eaten in zip(states["prepare meal"], states["eat meal"], strict=True):
        assert "meal" in about(prepared, "held")
        assert not foods & {entity(text) for text in prepared}
        assert not ({"meal"} | foods) & {entity(text) for text in eaten}


@pytest.mark.parametrize("level", ["easy", "standard"])
def test_the_short_way_to_a_game_gives_the_game_of_tw_make(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / "cache"))
    options = [
        part for name, value in OPTIONS[level].items() if value for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
    theirs = tmp_path / "theirs.z8"
    tw_make = [sys.executable, str(Path(sys.executable).with_name("tw-make")), "tw-cooking", "--silent"]
    subprocess.run([*tw_make, *options, "--seed", "7", "--output", str(theirs)], check=True, capture_output=True)
    ours = make_game(level, 7)
    assert ours.is_relative_to(tmp_path)
    assert content_hash(ours) == content_hash(theirs)
    assert recipe_of(ours) == recipe_of(theirs)
    worlds = [json.loads(path.with_suffix(".json").read_text())["world"] for path in (ours, theirs)]
    assert worlds[0] == worlds[1]


ODD_LINES = st.builds(
    line,
    st.sampled_from(["held", "counter", "floor", "fridge", "kitchen", "moon"]),
    st.sampled_from(["carrot", "egg", "knife", "fridge", "meal", "room", "table"]),
    st.sampled_from(["", "fried", "fresh uncut", "raw uncut burned", "open", "sharp", "counter stove"]),
)


@given(st.lists(ODD_LINES, min_size=1, max_size=6).map(make_state), st.integers(0, 99))
def test_every_explorer_acts_on_whatever_a_dream_may_show(state: State, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for explorer in TextWorldAdapter("easy").explorers().values():
        assert isinstance(explorer("cook carrot fried sliced and egg roasted diced", state, rng), str)


@pytest.mark.parametrize("act", [move, fuss, seek])
def test_an_explorer_of_the_logs_plays_real_games(act: Act) -> None:
    moments = list(play("easy", 4, act, 12))
    assert len({m.action for m in moments}) > 3
    assert len({m.facts for m in moments}) > 1


PAIRS = st.tuples(
    st.text("abcdefghij ", min_size=1, max_size=12), st.sampled_from(["fried", "roasted"]), st.sampled_from(["chopped", "sliced", "diced"])
)
RECIPES = st.lists(PAIRS, min_size=1, max_size=3).map(lambda pairs: tuple(sorted(pairs)))


@given(content=st.text("0123456789abcdef", min_size=16, max_size=16), recipe=RECIPES, other=RECIPES)
def test_a_panel_follows_from_content_and_reserved_pairs(content: str, recipe: Recipe, other: Recipe) -> None:
    panel = panels.panel_of(content, recipe)
    held_back = any(panels.reserved(pair) for pair in recipe)
    assert (panel == "unseen") == held_back
    assert panel == panels.panel_of(content, recipe[::-1])
    if not held_back and not any(panels.reserved(pair) for pair in other):
        assert panel == panels.panel_of(content, other)


def test_chosen_panels_of_a_level_share_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    # a stand-in for TextWorld in which most games occur several times
    def content_of(path: Path) -> str:
        return f"content-{int(path.name) % 300}"

    def recipe(path: Path) -> Recipe:
        return ((f"food-{int(path.name) % 300 % 40}", "fried", "diced"),)

    monkeypatch.setattr(panels, "make_game", lambda level, seed: Path(str(seed)))
    monkeypatch.setattr(panels, "content_hash", content_of)
    monkeypatch.setattr(panels, "recipe_of", recipe)
    games = panels.choose("easy")
    assert {g.panel for g in games} == set(panels.SIZES)
    check_panels(games, panels.SIZES)
    of_kinds = {panel: len(OPTIONS) * n for panel, n in panels.STRATUM.items()}
    pool = panels.choose(MIXED)
    check_panels([g.model_copy(update={"content": f"{g.task.split('/')[1]} {g.content}"}) for g in pool], of_kinds)
    for panel, n in panels.STRATUM.items():
        first = [g.task.split("/")[1] for g in pool if g.panel == panel][: len(OPTIONS)]
        assert first == list(OPTIONS), f"each kind has its turn in {panel}"
        assert sum(g.panel == panel for g in pool) == len(OPTIONS) * n


def check_panels(games: list[panels.Game], sizes: Mapping[Panel, int]) -> None:
    panel_of_content: dict[str, str] = {}
    for game in games:
        assert panel_of_content.setdefault(game.content, game.panel) == game.panel, game
        assert game.panel == "unseen" or not any(map(panels.reserved, game.recipe)), game
    assert len({g.task for g in games}) == len(games)
    for panel, size in sizes.items():
        contents = [g.content for g in games if g.panel == panel]
        assert len(contents) <= size
        assert panel == "train" or len(set(contents)) == len(contents)


@pytest.mark.parametrize("level", LEVELS)
def test_shipped_panels_share_no_content_and_are_the_games_built_here(level: str) -> None:
    games = panels.panels(level)
    check_panels(games, {p: len(OPTIONS) * n for p, n in panels.STRATUM.items()} if level == MIXED else panels.SIZES)
    for panel in panels.SIZES if level in ONE_ROOM else ("test",):
        panels.check_game(next(g for g in games if g.panel == panel))


def test_no_level_trains_on_what_another_evaluates() -> None:
    """Policies and experience models of one level may be held against another's games."""
    panel_of_content: dict[str, str] = {}
    for game in (g for level in LEVELS for g in panels.panels(level)):
        assert panel_of_content.setdefault(game.content, game.panel) == game.panel, game
