"""Cooking games: made from (level, seed), compiled to ``.z8`` and kept in a cache folder.

The knowledge base of the challenge is parsed once per process instead of once per game (a test compares the games);
games are always played from the compiled file, because with two ingredients the ``.json`` engine prepares meals that
can never win.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from rich.progress import track

from dreamgym.core.errors import DataError, DreamgymError, MissingExtraError

try:
    import textworld
    from textworld.challenges.tw_cooking import cooking
    from textworld.generator import compile_game
    from textworld.generator.data import KnowledgeBase
except ImportError as e:
    raise MissingExtraError("textworld", "textworld") from e


def _options(foods: int, rooms: int) -> dict[str, int | bool]:
    return {"recipe": foods, "take": foods, "go": rooms, "open": True, "cook": True, "cut": True, "drop": False}


OPTIONS: dict[str, dict[str, int | bool]] = {
    "easy": _options(1, 1),
    "standard": _options(2, 1),
    "hard": _options(3, 6),
    "recipe3": _options(3, 1),
    "recipe1_go6": _options(1, 6),
    "recipe2_go6": _options(2, 6),
}
"""What a game is made with, by the name in its task id."""
REALISED = "realised"
"""Games built from a task's text (``realise.py``) instead of a seed."""
MIXED = "mixed"
"""The pool of games of all these kinds, for the curriculum."""
CAPS: dict[str, int] = {"easy": 30, "standard": 40, "hard": 60, MIXED: 60, REALISED: 60}
"""Steps after which an episode is truncated, by level; one for all games of the mixed pool."""
LEVELS = ("easy", "standard", "hard", MIXED)
"""What has panels."""
ONE_ROOM = ("easy", "standard")
"""Levels whose states tell of no map."""
RECIPE_SEED = 0
"""tw-make's default: the recipe is drawn with the game's own seed."""


class _ParsedOnce:
    load = staticmethod(functools.lru_cache(KnowledgeBase.load))


def knowledge() -> KnowledgeBase:
    """The rules and texts of the challenge."""
    return _ParsedOnce.load(logic_path=cooking.KB_LOGIC_PATH, grammar_path=cooking.KB_GRAMMAR_PATH)


def cache_folder() -> Path:
    """Where compiled games are kept: ``$DREAMGYM_CACHE`` or ``~/.cache/dreamgym``."""
    root = os.environ.get("DREAMGYM_CACHE")
    base = Path(root) if root else Path.home() / ".cache" / "dreamgym"
    return base / f"textworld-{textworld.__version__}"


def task_id(level: str, seed: int) -> str:
    return f"textworld/{level}/{seed}"


def parse_task_id(task: str) -> tuple[str, int]:
    """(level, seed) of ``textworld/<level>/<seed>``."""
    parts = task.split("/")
    if len(parts) != 3 or parts[0] != "textworld" or parts[1] not in (*OPTIONS, REALISED) or not parts[2].isdecimal():
        raise DreamgymError(f"task id {task!r} names no TextWorld game; the form is textworld/<{'|'.join(OPTIONS)}>/<seed>")
    return parts[1], int(parts[2])


def make_game(level: str, seed: int) -> Path:
    """The compiled game of (level, seed), about 1.2 s the first time, from the cache afterwards."""
    folder = cache_folder()
    path = folder / f"{level}-{seed}.z8"
    if path.exists() and path.with_suffix(".json").exists():
        return path
    if level == REALISED:
        raise DataError(f"{task_id(level, seed)}: this game is not in {folder}; realise its task again")
    folder.mkdir(parents=True, exist_ok=True)
    cooking.KnowledgeBase = _ParsedOnce
    draft = folder / f".tmp-{os.getpid()}-{level}-{seed}.z8"
    options = textworld.GameOptions()
    options.seeds = seed
    options.path = str(draft)
    options.force_recompile = True
    game = cooking.make({**OPTIONS[level], "recipe_seed": RECIPE_SEED, "split": None}, options)
    compile_game(game, options)
    draft.with_suffix(".ni").unlink(missing_ok=True)
    os.replace(draft.with_suffix(".json"), path.with_suffix(".json"))
    os.replace(draft, path)
    return path


def make_games(games: Sequence[tuple[str, int]]) -> None:
    """Compile the games that the cache lacks, one process per core."""
    missing = [g for g in games if not (cache_folder() / f"{g[0]}-{g[1]}.z8").exists()]
    if len(missing) < 4:
        for level, seed in missing:
            make_game(level, seed)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(make_game, level, seed) for level, seed in missing]
        for _ in track(as_completed(futures), "  compiling games", total=len(missing), transient=True):
            pass
        for future in futures:
            future.result()


def content_hash(path: Path) -> str:
    """A hash of a game's content: all facts by the names of things, and with them the recipe; independent of seeds."""
    game = textworld.Game.load(str(path.with_suffix(".json")))
    names = {id_: info.name or id_ for id_, info in game.infos.items()}
    anonymous = {
        v: f"ingredient-of-{names[f.arguments[0].name]}" for f in game.world.facts if f.name == "base" for v in [f.arguments[1].name]
    }

    def called(variable: str) -> str:
        return anonymous.get(variable) or names.get(variable, variable)

    skip = {"ingredient_1", "ingredient_2", "ingredient_3"}
    facts = sorted(f"{f.name}({','.join(called(v.name) for v in f.arguments)})" for f in game.world.facts if f.name not in skip)
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=8).hexdigest()


def recipe_of(path: Path) -> tuple[tuple[str, str, str], ...]:
    """(food, cooking, cutting) of each ingredient, sorted by food; for building panels, never shown to a model."""
    game = textworld.Game.load(str(path.with_suffix(".json")))
    facts = game.world.facts
    names = {id_: info.name for id_, info in game.infos.items()}
    by_ingredient = {f.arguments[1].name: names[f.arguments[0].name] for f in facts if f.name == "base"}
    done = {(f.arguments[0].name, f.name) for f in facts if len(f.arguments) == 1}
    recipe = []
    for variable, food in by_ingredient.items():
        cooked = next(c for c in ("fried", "roasted", "grilled") if (variable, c) in done)
        cut = next(c for c in ("chopped", "sliced", "diced") if (variable, c) in done)
        recipe.append((food, cooked, cut))
    return tuple(sorted(recipe))
