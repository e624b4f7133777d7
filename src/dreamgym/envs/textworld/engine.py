"""TextWorld's interpreter with the one extra that a state is made of: the facts after each command.

game = Engine(make_game("hard", 1))
game.reset()
turn = game.step("open fridge")                # turn.text, turn.facts, turn.won, turn.lost

TextWorld's own wrapper (``textworld.start`` with ``facts=True``) finds every admissible action of every state, and reads the game's
description anew for every episode: half of an episode's time. Here the rules are tried whose event the interpreter printed, and nothing
else. Facts, wins and losses are the same; a test plays both side by side.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from textworld import Game
from textworld.envs import JerichoEnv
from textworld.generator.inform7 import Inform7Game
from textworld.logic import Proposition

_TAG = re.compile(r"\[([^]]+)\]\n?")
_SUCCEEDED = " - succeeded"


@dataclass(frozen=True)
class Turn:
    """What one command came to."""

    text: str
    """What the game says, without the interpreter's own tags."""
    facts: list[Proposition]
    """All facts of the world, by the names of things."""
    won: bool
    lost: bool


class Engine:
    """One compiled game, played from its start as often as wanted. The description (``.json``) stands beside the game."""

    def __init__(self, path: Path) -> None:
        self._game = _game(path.with_suffix(".json"))
        self._named = Inform7Game(self._game)
        self._readable: dict[Proposition, Proposition] = {}
        self._interpreter = JerichoEnv()
        self._interpreter.load(str(path))

    def reset(self) -> None:
        self._interpreter.reset()
        self._interpreter._send("tw-trace-actions")  # as TextWorld's wrapper does: what happened is printed from here on
        self._world = self._game.world.state.copy()

    def step(self, command: str) -> Turn:
        said, _, _ = self._interpreter.step(command)
        text = _TAG.sub("", said.raw)
        for tag in _TAG.findall(said.raw):
            event, succeeded, _ = tag.strip().partition(_SUCCEEDED)
            if succeeded and not {"(", ")"} & set(event):  # brackets: a rule within another action
                self._happened(event)
        return Turn(text, [self._read(f) for f in self._world.facts], "*** The End ***" in text, "*** You lost! ***" in text)

    def close(self) -> None:
        self._interpreter.close()

    def _happened(self, event: str) -> None:
        """Change the world by the action that the interpreter reports; what changes no fact is no action of the rules."""
        kb = self._game.kb
        rules = (rule for name, rule in kb.rules.items() if _pattern(kb.inform7_events[name]).fullmatch(event))
        possible = [a for rule in rules for a in self._world.all_instantiations(rule, kb.types.constants_mapping)]
        if action := self._named.detect_action(event, possible):
            self._world.apply(action)

    def _read(self, fact: Proposition) -> Proposition:
        if fact not in self._readable:
            self._readable[fact] = self._named.get_human_readable_fact(fact)
        return self._readable[fact]


@functools.lru_cache(maxsize=128)
def _game(description: Path) -> Game:
    """A game's description, a third of a megabyte; the members of a group play the same one."""
    return Game.load(str(description))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The events that a rule's template (``taking {o} from {c}``) can be."""
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\{.*?\}", template)), re.IGNORECASE)
