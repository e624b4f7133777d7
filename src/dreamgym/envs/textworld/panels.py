"""The fixed panels: which games may be used for what, shipped as ``panels.json`` with a content hash for each game.

A game's panel follows from its *content* (facts and quest), not from its seed, so no test or probe game can share
recipe, first state and contents with a training game. Games whose recipe holds one of the reserved food x preparation
pairs are kept out of everything but ``unseen``.
"""

import json
import sys
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dreamgym.core.errors import DataError
from dreamgym.core.files import write_atomic
from dreamgym.core.seeding import key_of
from dreamgym.core.types import Panel
from dreamgym.envs.textworld.games import LEVELS, MIXED, OPTIONS, content_hash, make_game, recipe_of, task_id

SIZES: dict[Panel, int] = {"train": 620, "probe": 100, "test": 150, "unseen": 50}
"""Games per level and panel."""
STRATUM: dict[Panel, int] = {"train": 104, "probe": 17, "test": 25, "unseen": 9}
"""Games of each kind in the mixed pool."""
SEEDS = 1400
"""Seeds 1..SEEDS are looked at, until the panels are full."""
_RESERVED = 0.1


class Game(BaseModel):
    """One game of a panel."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: str
    panel: Panel
    content: str
    recipe: tuple[tuple[str, str, str], ...]


def reserved(pair: tuple[str, str, str]) -> bool:
    """Whether a (food, cooking, cutting) triple is kept for the panel ``unseen``."""
    return key_of("reserved", *pair) / 2**64 < _RESERVED


def panel_of(content: str, recipe: tuple[tuple[str, str, str], ...]) -> Panel:
    """The only panel that a game of this content may be in."""
    if any(reserved(pair) for pair in recipe):
        return "unseen"
    share = key_of("panel", content) / 2**64
    total = 600 + SIZES["probe"] + SIZES["test"]  # the same shares in every level
    if share < SIZES["test"] / total:
        return "test"
    return "probe" if share < (SIZES["test"] + SIZES["probe"]) / total else "train"


def choose(level: str) -> list[Game]:
    """The panels of a level; in those of the mixed pool each kind of game has its turn."""
    if level != MIXED:
        return take(level, SIZES)
    kinds = [take(kind, STRATUM) for kind in OPTIONS]
    of = {panel: [[g for g in games if g.panel == panel] for games in kinds] for panel in STRATUM}
    return [game for panel in STRATUM for games in zip(*of[panel], strict=True) for game in games]


def take(level: str, sizes: dict[Panel, int]) -> list[Game]:
    """Games of one kind from its seeds in order. Games of equal content are taken once outside ``train``."""
    chosen: list[Game] = []
    left = dict(sizes)
    contents: set[str] = set()
    for seed in range(1, SEEDS + 1):
        if not any(left.values()):
            break
        path = make_game(level, seed)
        content, recipe = content_hash(path), recipe_of(path)
        panel = panel_of(content, recipe)
        if left[panel] == 0 or (panel != "train" and content in contents):
            continue
        contents.add(content)
        left[panel] -= 1
        chosen.append(Game(task=task_id(level, seed), panel=panel, content=content, recipe=recipe))
    return chosen


def panels(level: str, panel: Panel | None = None) -> list[Game]:
    """The shipped panels of a level, or one of them, in their fixed order."""
    data = json.loads(resources.files("dreamgym.data").joinpath("panels.json").read_text())
    games = [Game.model_validate(g) for g in data[level]]
    return [g for g in games if panel is None or g.panel == panel]


def check_game(game: Game) -> None:
    """Raise ``DataError`` where the game built here is not the game of the panel (another TextWorld version, say)."""
    level, seed = game.task.split("/")[1], int(game.task.split("/")[2])
    found = content_hash(make_game(level, seed))
    if found != game.content:
        raise DataError(f"{game.task}: content {found} differs from the panel's {game.content}; install the pinned textworld")


def write_panels(path: Path) -> None:
    """Make ``panels.json`` anew (about 4,000 games, an hour and a half on one core): ``python -m dreamgym.envs.textworld.panels FILE``."""
    data = {level: [g.model_dump(mode="json") for g in choose(level)] for level in LEVELS}
    write_atomic(path, json.dumps(data, separators=(",", ":")).replace('{"task"', '\n{"task"') + "\n")


if __name__ == "__main__":
    write_panels(Path(sys.argv[1]))
