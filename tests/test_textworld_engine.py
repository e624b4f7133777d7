"""The engine against TextWorld's own wrapper: the same commands, the same world."""

import random

import pytest
import textworld

from dreamgym.envs.textworld.engine import Engine
from dreamgym.envs.textworld.games import make_game

BESIDES = (
    "look",
    "inventory",
    "examine cookbook",
    "dance",
    "open teapot",
    "go up",
    "take all",
    "drop knife",
    "eat meal",
    "prepare meal",
    "put knife on counter",
)
"""Commands that are often not admissible: refused, unknown, or about what is not there."""


def _beside(oracle: textworld.core.Environment, engine: Engine, walks: random.Random, steps: int) -> int:
    """Both play one random walk; how many commands changed the world."""
    theirs = oracle.reset()
    engine.reset()
    changed = 0
    for _ in range(steps):
        command = walks.choice(theirs["admissible_commands"] if walks.random() < 0.7 else BESIDES)
        before = theirs["facts"]
        theirs, _, _ = oracle.step(command)
        ours = engine.step(command)
        assert ours.facts == theirs["facts"], command
        assert (ours.won, ours.lost) == (theirs["won"], theirs["lost"]), command
        changed += set(before) != set(theirs["facts"])
        if ours.won or ours.lost:
            break
    return changed


@pytest.mark.parametrize(("level", "seed"), [("easy", 1), ("standard", 2), ("hard", 3), ("hard", 4)])
def test_facts_and_ends_are_those_of_textworlds_own_wrapper(level: str, seed: int) -> None:
    path = make_game(level, seed)
    oracle = textworld.start(str(path), textworld.EnvInfos(facts=True, won=True, lost=True, admissible_commands=True))
    engine, walks = Engine(path), random.Random(seed)
    assert sum(_beside(oracle, engine, walks, 60) for _ in range(6)) > 40  # played again and again from the start
    oracle.close()
    engine.close()


@pytest.mark.parametrize("level", ["easy", "standard", "hard"])
def test_the_way_that_wins_wins_in_both(level: str) -> None:
    path = make_game(level, 5)
    oracle = textworld.start(str(path), textworld.EnvInfos(facts=True, won=True, extras=["walkthrough"]))
    way = oracle.reset()["extra.walkthrough"]
    engine = Engine(path)
    engine.reset()
    for command in way:
        theirs, _, _ = oracle.step(command)
        ours = engine.step(command)
        assert ours.facts == theirs["facts"], command
    assert (ours.won, theirs["won"], ours.lost) == (True, True, False)


def test_what_the_game_says_is_free_of_the_interpreters_tags() -> None:
    path = make_game("easy", 1)
    oracle = textworld.start(str(path), textworld.EnvInfos(facts=True))
    oracle.reset()
    theirs, _, _ = oracle.step("examine cookbook")
    engine = Engine(path)
    engine.reset()
    ours = engine.step("examine cookbook")
    assert ours.text.split() == theirs["feedback"].split()
    assert "[" not in ours.text
