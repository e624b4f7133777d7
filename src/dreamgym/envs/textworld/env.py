"""The real environment: TextWorld cooking behind ``Env``, every step counted.

env = TextWorldEnv(counter=RealSteps(purpose="probe"))
observation, info = await env.reset(task, seed=0)       # reads the cookbook: one real step; info["instruction"]
step = await env.step("take red_potato from counter")
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from dreamgym.core.env import Info, RealSteps, Step
from dreamgym.core.state import State, text_of_state
from dreamgym.core.types import Panel, StopReason, Task
from dreamgym.envs.textworld.engine import Engine
from dreamgym.envs.textworld.games import CAPS, MIXED, make_game, parse_task_id, task_id
from dreamgym.envs.textworld.mapper import Fact, FactMapper, View, one_word, spaced
from dreamgym.envs.textworld.rooms import RoomsMapper

ENV = "textworld"
_META = {
    "restart",
    "restore",
    "save",
    "quit",
    "q",
    "undo",
    "script",
    "transcript",
    "verbose",
    "brief",
    "superbrief",
    "tw-print",
    "tw-trace-actions",
    "tw-extra-infos",
    "oops",
    "again",
    "g",
}
"""Commands of the interpreter, not of the world: they do nothing here."""
_WORDS = re.compile(r"[A-Za-z0-9' -]+")
"""What the interpreter is given; it dies of control characters."""
_CHAINS = re.compile(r"\b(then|and|both|all|everything)\b", re.IGNORECASE)
"""The interpreter would run several commands in one step, or act on several things behind its own fact tracker's back."""
_SYNONYMS = re.compile(r"^(get|pick up|grab) (?!(in|out|on|off|up|down)\b)", re.IGNORECASE)
"""The game understands these as *take*, but its fact tracker does not."""
_VERBS = {"chop": "chopped", "slice": "sliced", "dice": "diced", "fry": "fried", "roast": "roasted", "grill": "grilled"}


def instruction_of(cookbook: str) -> str:
    """The recipe as an instruction, ``cook carrot fried diced and red_potato roasted sliced``."""
    text = cookbook.partition("Ingredients:")[2]
    names, _, directions = text.partition("Directions:")
    foods = [n.strip() for n in names.splitlines() if n.strip()]
    wants: dict[str, list[str]] = {food: [] for food in foods}
    for verb, food in re.findall(r"^\s*(\w+) the (.+?)\s*$", directions, re.MULTILINE):
        wants[food].append(_VERBS[verb])
    return recipe_text(wants)


def recipe_in(facts: Iterable[Fact]) -> str:
    """The same instruction from a game's facts: what the cookbook says where it lies in another room."""
    known = [(f.name, [v.name for v in f.arguments]) for f in facts]
    foods = {names[1]: names[0] for name, names in known if name == "base"}
    wants = {food: [name for name, names in known if names == [i] and name in _VERBS.values()] for i, food in foods.items()}
    return recipe_text(wants)


def recipe_text(wants: Mapping[str, Sequence[str]]) -> str:
    """A recipe as an instruction: what each food wants done."""
    order = {w: i for i, w in enumerate(("fried", "roasted", "grilled", "chopped", "sliced", "diced"))}
    parts = [f"{one_word(food)} {' '.join(sorted(done, key=order.__getitem__))}" for food, done in sorted(wants.items())]
    return "cook " + " and ".join(parts)


def one_command(action: str) -> str:
    """An action as one command of the game, or "" where it is none: interpreter commands and chains do nothing."""
    command = _SYNONYMS.sub("take ", spaced(" ".join(action.split()))[:160])
    words = command.lower().split()
    sound = bool(words) and words[0] not in _META and _WORDS.fullmatch(command) and not _CHAINS.search(command)
    return command if sound else ""


class TextWorldEnv:
    """One live cooking game. ``seed`` of ``reset`` has no effect: a game is fixed by its task id."""

    def __init__(self, counter: RealSteps, view: View = "carried", cap: int | None = None) -> None:
        """``cap``: steps after which an episode is truncated; None = as its game's level has it."""
        self.counter, self._limit = counter, cap
        self._mapper = RoomsMapper() if view == "rooms" else FactMapper(view)
        self._game: Engine | None = None
        self._task = ""
        self._state: State = ()
        self._cap = 0
        self._steps = 0
        self._done = True

    @property
    def at_cap(self) -> bool:
        """Whether the episode can take no further step."""
        return self._done

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        return self.reset_sync(task.id)

    async def step(self, action: str) -> Step:
        return self.step_sync(action)

    async def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def reset_sync(self, task: str) -> tuple[str, Info]:
        """``reset`` without an event loop (collection re-plays prefixes thousands of times)."""
        level, number = parse_task_id(task)
        if self._game is None or self._task != task:
            if self._game is not None:
                self._game.close()
            self._game = Engine(make_game(level, number))
        self._task = task
        self._game.reset()
        self.counter.add()
        book = self._game.step("examine cookbook")
        self._mapper.reset()
        self._state = self._mapper.observe(book.facts)
        self._cap, self._steps, self._done = self._limit or CAPS.get(level, CAPS[MIXED]), 0, False
        read = "Ingredients:" in book.text
        return text_of_state(self._state), {"instruction": instruction_of(book.text) if read else recipe_in(book.facts)}

    def step_sync(self, action: str) -> Step:
        if self._game is None or self._done:
            raise RuntimeError("step() on an episode that has ended or never began; call reset() first")
        command = one_command(action)
        won = lost = False
        self.counter.add()
        if command:
            turn = self._game.step(command)
            won, lost = turn.won, turn.lost
            self._state = self._mapper.observe(turn.facts)
        self._steps += 1
        truncated = not (won or lost) and self._steps >= self._cap
        self._done = won or lost or truncated
        stop = StopReason.WON if won else StopReason.LOST if lost else StopReason.MAX_STEPS if truncated else None
        return Step(text_of_state(self._state), 1.0 if won else 0.0, won or lost, truncated, {"stop": stop} if stop else {})


def look_at(level: str, seed: int, panel: Panel, counter: RealSteps, view: View = "carried") -> Task:
    """The task of a game as its reset shows it (one real step); the sheet is filled later, from episodes."""
    env = TextWorldEnv(counter, view)
    observation, info = env.reset_sync(task_id(level, seed))
    return Task(
        id=task_id(level, seed),
        instruction=str(info["instruction"]),
        first_state=tuple(observation.splitlines()),
        panel=panel,
        difficulty=level,
    )
