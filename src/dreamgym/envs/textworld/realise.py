"""From a task's text to a real game, and a proof that it can be won: the true validity of tasks that nobody logged.

    game = realise(task)                         # instruction + first state + sheet become textworld/realised/<number>
    proof = solved(task, counter)                # a scripted cook plays it

Only what the task's text says is built: rooms, furniture, doors and foods of first state and sheet, the recipe of the instruction. A
recipe with a food that is nowhere, or a world without a knife, becomes a game that cannot be won. What things of a kind are like (a
potato has to be cooked before it is eaten) is TextWorld's, not the task's.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import textworld
from textworld.challenges.tw_cooking import cooking
from textworld.generator import Event, Quest, compile_game
from textworld.generator.maker import GameMaker, WorldEntity, WorldRoom

from dreamgym.core.env import RealSteps
from dreamgym.core.seeding import key_of
from dreamgym.core.state import LINE, state_of_text
from dreamgym.core.types import StopReason, Task
from dreamgym.envs.textworld.behaviours import CUT, HEAT, goal_of, orderly, read_scene
from dreamgym.envs.textworld.env import TextWorldEnv
from dreamgym.envs.textworld.games import CAPS, REALISED, cache_folder, knowledge, task_id
from dreamgym.envs.textworld.mapper import FLOOR, HELD, ROOM, spaced
from dreamgym.envs.textworld.navigation import read_rooms
from dreamgym.envs.textworld.rooms import OPPOSITE, WAY

_DONE = {*HEAT, *CUT}


class Unbuildable(ValueError):
    """The task's text is no cooking game; the message says what in it."""


@dataclass(frozen=True)
class Proof:
    """What became of a task that was realised."""

    solvable: bool
    reason: str
    """``won``, or why not: what cannot be built, or how the cook's game ended."""
    game: str | None
    """Task id of the real game; None where there is none."""
    steps: int


@dataclass(frozen=True)
class _World:
    """What a task's text says of its world."""

    here: str
    rooms: tuple[str, ...]
    ways: Mapping[tuple[str, str], tuple[str, str]]
    """(room, direction) -> (room, door or ``way``)."""
    furniture: Mapping[str, tuple[str, str]]
    """Thing -> (room, ``open``, ``closed`` or ``surface``)."""
    doors: Mapping[str, str]
    things: Mapping[str, tuple[str, str]]
    """Thing -> (place, text)."""


def read_world(task: Task) -> _World:
    """The world of first state and sheet. Raises ``Unbuildable`` where no room is in it."""
    lines = [m for m in map(LINE.fullmatch, (*task.first_state, *task.sheet)) if m]
    if held := [s for s in task.sheet if s.startswith(f"[{HELD}] ")]:
        raise Unbuildable(f"its sheet puts a thing into the hand: {held[0]!r}")
    rooms = read_rooms((*task.first_state, *task.sheet))
    if rooms is None:
        return _one_room(lines)
    ways = {}
    for room, ends in rooms.ends.items():
        for direction, beyond in ends.items():
            ways[room, direction] = (beyond, rooms.exits.get(room, {}).get(direction, WAY))
    places = {rooms.here, *(r for r, _ in ways), *(r for r, _ in ways.values()), *rooms.furniture.values()}
    texts = {m["kind"]: m["text"] or "" for m in lines}
    furniture = {k: (room, texts[k]) for k, room in rooms.furniture.items()}
    things = {m["kind"]: (m["place"], m["text"] or "") for m in lines if m["kind"] not in rooms.signs and m["kind"] not in furniture}
    return _World(rooms.here, tuple(sorted(places)), ways, furniture, rooms.doors, things)


def _one_room(lines: list[re.Match[str]]) -> _World:
    here = next(((m["place"], (m["text"] or "").split()) for m in lines if m["kind"] == ROOM), None)
    if here is None:
        raise Unbuildable("its first state tells of no room")
    room, surfaces = here
    furniture = {s: (room, "surface") for s in surfaces}
    furniture |= {m["kind"]: (room, m["text"]) for m in lines if m["text"] in ("open", "closed")}
    things = {m["kind"]: (m["place"], m["text"] or "") for m in lines if m["kind"] != ROOM and m["kind"] not in furniture}
    return _World(room, (room,), {}, furniture, {}, things)


def realise(task: Task) -> str:
    """The id of the real game of ``task``, built unless the cache has it. Raises ``Unbuildable``."""
    world, goal = read_world(task), _goal(task)
    name = task_id(REALISED, key_of("realised 1", task.instruction, *task.first_state, *task.sheet))
    path = cache_folder() / f"{REALISED}-{name.rpartition('/')[2]}.z8"
    if path.exists():
        return name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    options = textworld.GameOptions()
    options.seeds, options.path, options.force_recompile, options.kb = 0, str(draft), True, knowledge()
    game = _built(world, goal, options)
    compile_game(game, options)
    draft.with_suffix(".ni").unlink(missing_ok=True)
    os.replace(draft.with_suffix(".json"), path.with_suffix(".json"))
    os.replace(draft, path)
    return name


def _goal(task: Task) -> dict[str, tuple[str, str]]:
    try:
        goal = goal_of(task.instruction)
    except (IndexError, ValueError) as e:
        raise Unbuildable(f"{task.instruction!r} is no recipe") from e
    strange = [f"{cooked} {cut}" for cooked, cut in goal.values() if cooked not in HEAT or cut not in CUT]
    if not task.instruction.startswith("cook ") or strange or " and ".join(_said(goal)) != task.instruction.removeprefix("cook "):
        raise Unbuildable(f"{task.instruction!r} is no recipe")
    if unknown := [f for f in goal if spaced(f) not in cooking.FOODS]:
        raise Unbuildable(f"there is no food {unknown[0]!r}")
    return goal


def _said(goal: Mapping[str, tuple[str, str]]) -> list[str]:
    return [f"{food} {cooked} {cut}" for food, (cooked, cut) in goal.items()]


def _built(world: _World, goal: Mapping[str, tuple[str, str]], options: "textworld.GameOptions") -> "textworld.Game":
    """The game, made of the same parts and quests as those of the challenge."""
    maker = GameMaker(options)
    recipe, meal = maker.new(type="RECIPE", name=""), maker.new(type="meal", name="meal")
    maker.add_fact("out", meal, recipe)
    meal.add_property("edible")
    maker.nowhere.append(recipe)
    maker.nowhere.append(meal)
    rooms = {name: maker.new_room(spaced(name)) for name in world.rooms}
    _connect(maker, world, rooms)
    if "kitchen" in rooms:
        maker.add_fact("cooking_location", rooms["kitchen"], recipe)
    placed: dict[str, WorldEntity] = {}
    for name, (room, state) in world.furniture.items():
        known = cooking.ENTITIES.get(spaced(name))
        if known is None:
            raise Unbuildable(f"there is no furniture {name!r}")
        thing = maker.new(type=known["type"], name=spaced(name))
        for p in known["properties"]:
            thing.add_property(state if p in ("open", "closed") else p)
        rooms[room].add(thing)
        placed[name] = thing
    for name, (place, text) in world.things.items():
        around = rooms.get(world.here if place == FLOOR else place.removesuffix("_floor"))
        holder = maker.inventory if place == HELD else around or placed.get(place)
        if holder is None:
            raise Unbuildable(f"{name} is in {place!r}, which its world does not have")
        holder.add(_thing(maker, name, text))
    maker.set_player(rooms[world.here])
    foods = {}
    for i, (name, (cooked, cut)) in enumerate(sorted(goal.items()), start=1):
        food = maker.find_by_name(spaced(name)) or _nowhere(maker, name)
        ingredient = maker.new(type="ingredient", name="")
        food.add_property(f"ingredient_{i}")
        maker.add_fact("base", food, ingredient)
        for fact in (cut, cooked):
            maker.add_fact(fact, ingredient)
        maker.add_fact("in", ingredient, recipe)
        maker.nowhere.append(ingredient)
        foods[name] = food
    maker.grammar = textworld.generator.make_grammar(options.grammar, rng=np.random.RandomState(0))
    maker.quests = _quests(maker, goal, foods, meal)
    return maker.build()


def _connect(maker: GameMaker, world: _World, rooms: Mapping[str, WorldRoom]) -> None:
    done: set[frozenset[str]] = set()
    used: set[tuple[str, str]] = set()
    for (room, direction), (beyond, door) in world.ways.items():
        if direction not in OPPOSITE:
            raise Unbuildable(f"there is no direction {direction!r}")
        if frozenset((room, beyond)) in done:
            continue
        done.add(frozenset((room, beyond)))
        ends = {(room, direction), (beyond, OPPOSITE[direction])}
        if room == beyond or ends & used:
            raise Unbuildable(f"the way from {room} to {beyond} does not fit its map")
        used |= ends
        path = maker.connect(getattr(rooms[room], direction), getattr(rooms[beyond], OPPOSITE[direction]))
        if door != WAY:
            maker.new_door(path, spaced(door)).add_property(world.doors.get(door, "closed"))


def _thing(maker: GameMaker, name: str, text: str) -> WorldEntity:
    """A thing as its line describes it."""
    called = spaced(name)
    if called in cooking.FOODS:
        if set(text.split()) & _DONE:
            raise Unbuildable(f"{name} is {text} before anything was done")
        food = maker.new(type=cooking.FOODS[called].get("type", "f"), name=called)
        for p in cooking.FOODS[called]["properties"]:
            food.add_property(p)
        return food
    known = cooking.ENTITIES.get(called)
    if known is None or known["type"] != "o":
        raise Unbuildable(f"there is no thing {name!r}")
    thing = maker.new(type="o", name=called)
    for p in known["properties"]:
        thing.add_property(p)
    return thing


def _nowhere(maker: GameMaker, name: str) -> WorldEntity:
    """A food that the recipe wants and the world does not have: nobody can take it."""
    food = _thing(maker, name, "")
    maker.nowhere.append(food)
    return food


def _quests(maker: GameMaker, goal: Mapping[str, tuple[str, str]], foods: Mapping[str, WorldEntity], meal: WorldEntity) -> list[Quest]:
    """Won by eating the meal, lost by ruining what it needs, as in the challenge."""
    quests, eaten = [], []
    for name, food in foods.items():
        cooked, cut = goal[name]
        consumed = Event(conditions={maker.new_fact("consumed", food)})
        eaten.append(consumed)
        wrong = [f for f in ("burned", *HEAT) if f != cooked] + [c for c in CUT if c != cut]
        ruined = [Event(conditions={maker.new_fact(w, food)}) for w in wrong]
        quests.append(Quest(win_events=[], fail_events=[consumed, *ruined]))
        for done in (cooked, cut):
            quests.append(Quest(win_events=[Event(conditions={maker.new_fact(done, food)})]))
    quests.append(Quest(win_events=[Event(conditions={maker.new_fact("in", meal, maker.inventory)})], fail_events=eaten))
    burned, consumed = (Event(conditions={maker.new_fact(f, meal)}) for f in ("burned", "consumed"))
    return [*quests, Quest(win_events=[consumed], fail_events=[burned])]


def solved(task: Task, counter: RealSteps, cap: int | None = None, tries: int = 2) -> Proof:
    """Whether a scripted cook wins the real game of ``task``; its steps are counted. What cannot be built is not solvable.

    ``cap``: steps that an agent has, and the cook too; None = as the task's level has it.
    """
    try:
        game = realise(task)
    except Unbuildable as e:
        return Proof(False, str(e), None, 0)
    before, reason = counter.total, ""
    env = TextWorldEnv(counter, "rooms" if read_rooms(task.first_state) else "carried")
    try:
        for n in range(tries):
            reason = _cooked(env, game, task, cap or CAPS.get(task.difficulty, CAPS[REALISED]), np.random.default_rng(n))
            if reason == "won":
                break
    finally:
        asyncio.run(env.close())
    return Proof(reason == "won", reason, game, counter.total - before)


def _cooked(env: TextWorldEnv, game: str, task: Task, cap: int, rng: np.random.Generator) -> str:
    """How a cook's game ends who has ``cap`` steps."""
    observation, info = env.reset_sync(game)
    if goal_of(str(info["instruction"])) != goal_of(task.instruction):
        return f"the game wants {info['instruction']!r}"
    for _ in range(cap):
        answer = env.step_sync(orderly(read_scene(task.instruction, state_of_text(observation)), rng))
        observation, stop = answer.observation, answer.info.get("stop")
        if isinstance(stop, StopReason):
            return stop.value
    return StopReason.MAX_STEPS.value
