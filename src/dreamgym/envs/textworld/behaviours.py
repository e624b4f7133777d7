"""Who acts in the logs: a scripted expert, and explorers that get things wrong in the ways that teach.

All of them read the abstract state and the instruction only, like any agent. The proposals are deliberately rich in
inadmissible, premature and malformed commands and in near misses (right object, wrong tool or cut): an experience model
that has never seen a failure is an optimist.
"""

from dataclasses import dataclass, replace

import numpy as np

from dreamgym.core.state import LINE, State
from dreamgym.envs.textworld.navigation import Rooms, explore, read_rooms, way_to
from dreamgym.envs.textworld.rooms import floor_of

HEAT = {"fried": "stove", "roasted": "oven", "grilled": "BBQ"}
CUT = {"chopped": "chop", "sliced": "slice", "diced": "dice"}
FOODS = [
    "pork_chop",
    "red_tuna",
    "white_tuna",
    "carrot",
    "red_onion",
    "white_onion",
    "yellow_onion",
    "lettuce",
    "red_potato",
    "yellow_potato",
    "purple_potato",
    "red_apple",
    "yellow_apple",
    "green_apple",
    "banana",
    "tomato",
    "red_hot_pepper",
    "green_hot_pepper",
    "red_bell_pepper",
    "yellow_bell_pepper",
    "green_bell_pepper",
    "orange_bell_pepper",
    "block_of_cheese",
]
PLACES = ("counter", "table", "stove", "fridge", "oven", "floor")
NOISE = (
    "look",
    "inventory",
    "examine cookbook",
    "wait",
    "help",
    "take",
    "cook",
    "eat",
    "open",
    "prepare",
    "slice",
    "go north",
    "cook meal",
    "make meal",
    "eat food",
    "take all",
    "",
)


@dataclass(frozen=True)
class Scene:
    """A state, parsed: where each thing is and what it went through."""

    place: dict[str, str]
    text: dict[str, str]
    foods: tuple[str, ...]
    goal: dict[str, tuple[str, str]]
    """Food -> (cooking, cutting) that the recipe wants."""
    rooms: Rooms | None = None
    """The map, where there are several rooms."""

    @property
    def held(self) -> list[str]:
        return [k for k, p in self.place.items() if p == "held"]


def goal_of(instruction: str) -> dict[str, tuple[str, str]]:
    """``cook carrot fried sliced and ...`` as {food: (cooking, cutting)}."""
    parts = instruction.removeprefix("cook ").split(" and ")
    return {w[0]: (w[1], w[2]) for w in (p.split() for p in parts)}


def read_scene(instruction: str, state: State) -> Scene:
    place, text = {}, {}
    rooms = read_rooms(state)
    for m in filter(None, map(LINE.fullmatch, state)):
        if m["kind"] != "room" and not (rooms and m["kind"] in rooms.signs):
            place[m["kind"]], text[m["kind"]] = m["place"], m["text"] or ""
            if rooms and m["place"] == floor_of(rooms.here):
                place[m["kind"]] = "floor"
    foods = tuple(k for k, t in text.items() if len(t.split()) == 2)
    return Scene(place, text, foods, goal_of(instruction), rooms)


def expert(scene: Scene, rng: np.random.Generator) -> str:
    """The next command of a competent cook; hidden ingredients are looked for in the fridge."""
    if scene.place.get("meal") == "held":
        return "eat meal"
    options: list[str] = []
    for food, (cooked, cut) in scene.goal.items():
        if food not in scene.place:
            options.append("open fridge" if scene.text.get("fridge") == "closed" else "look")
        elif scene.place[food] != "held":
            options.append(f"take {food} from {scene.place[food]}" if scene.place[food] != "floor" else f"take {food}")
        elif food not in scene.foods:  # only a dream shows a food without its two attributes
            options.append("look")
        else:
            has_cooked, has_cut = scene.text[food].split()
            if has_cut == "uncut":
                options.append(_with_knife(scene, f"{CUT[cut]} {food} with knife"))
            if has_cooked in ("raw", "fresh"):
                options.append(f"cook {food} with {HEAT[cooked]}")
    return led(scene, options[int(rng.integers(len(options)))] if options else "prepare meal")


def led(scene: Scene, command: str) -> str:
    """``command``, or the next step to the room where it can be done; what is not known yet is looked for in unknown rooms."""
    if scene.rooms is None:
        return command
    words = command.split()
    match words:
        case ["take", x, "from", spot]:
            needs: str | None = spot
        case ["take", x]:
            needs = "floor" if scene.place.get(x) == "floor" else None
        case ["open", x] | ["cook", _, "with", x]:
            needs = x
        case ["prepare", "meal"]:
            needs = "stove"
        case ["look"]:
            needs = None
        case _:
            return command
    room = scene.rooms.room_of(needs) if needs else None
    if room == scene.rooms.here:
        return command
    return (way_to(scene.rooms, room) if room else explore(scene.rooms)) or command


def wander(scene: Scene, rng: np.random.Generator) -> str:
    """Going somewhere, or nowhere; minding doors."""
    assert scene.rooms is not None
    go = f"go {_pick(('north', 'south', 'east', 'west'), rng)}"
    known = [f"go {d}" for d in scene.rooms.exits.get(scene.rooms.here, {})]
    doors = [f"{verb} {door}" for door in scene.rooms.doors for verb in ("open", "close")]
    return _pick([*known, *known, go, *(doors or ["open door"])], rng)


def orderly(scene: Scene, rng: np.random.Generator) -> str:
    """The next command of a cook who follows the recipe: fetch all of it, then cut and cook one food after the other.

    What to do next follows from the state alone. ``expert`` draws among all that is left to do; with two foods a small policy
    that imitates it cannot tell which preparation belongs to which (docs/development.md).
    """
    foods = scene.goal.items()
    for food, _ in foods:
        if scene.place.get(food) != "held":
            return expert(replace(scene, goal={food: scene.goal[food]}), rng)
    for food, (cooked, cut) in foods:
        has_cooked, has_cut = scene.text[food].split()
        if has_cut == "uncut":
            return led(scene, _with_knife(scene, f"{CUT[cut]} {food} with knife"))
        if has_cooked in ("raw", "fresh"):
            return led(scene, f"cook {food} with {HEAT[cooked]}")
    return expert(scene, rng)


def one_by_one(scene: Scene, rng: np.random.Generator) -> str:
    """The next command of a cook who fetches an ingredient, cuts and cooks it, and only then fetches the next, in the recipe's order.

    With three foods a small policy that imitates ``orderly`` cannot tell which of those in its hands is next (docs/development.md);
    here at most one of them is not done.
    """
    for food, (cooked, cut) in scene.goal.items():
        if scene.place.get(food) != "held":
            return expert(replace(scene, goal={food: scene.goal[food]}), rng)
        has_cooked, has_cut = scene.text[food].split()
        if has_cut == "uncut":
            return led(scene, _with_knife(scene, f"{CUT[cut]} {food} with knife"))
        if has_cooked in ("raw", "fresh"):
            return led(scene, f"cook {food} with {HEAT[cooked]}")
    return expert(scene, rng)


def _with_knife(scene: Scene, command: str) -> str:
    spot = scene.place.get("knife")
    return command if spot == "held" else "take knife" if spot in (None, "floor") else f"take knife from {spot}"


def admissible_like(scene: Scene, rng: np.random.Generator) -> str:
    """A command that is well formed and about things in sight; many of them do something."""
    things = [k for k in scene.place if k not in ("fridge", "oven")]
    if not things:  # only a dream shows nothing but furniture
        return "look"
    thing = _pick(things, rng)
    spot = scene.place[thing]
    options = [
        f"take {thing} from {spot}" if spot not in ("held", "floor") else f"take {thing}",
        f"put {thing} on {_pick(('counter', 'table', 'stove'), rng)}",
        f"drop {thing}",
        f"examine {thing}",
        f"insert {thing} into {_pick(('fridge', 'oven'), rng)}",
        f"{_pick(('open', 'close'), rng)} {_pick(('fridge', 'fridge', 'oven'), rng)}",
    ]
    if scene.held:
        h = _pick(scene.held, rng)
        options += [f"drop {h}", f"put {h} on {_pick(('counter', 'table', 'stove'), rng)}", f"insert {h} into fridge"]
    return _pick(options, rng)


def near_miss(scene: Scene, rng: np.random.Generator) -> str:
    """Right object, wrong tool, cut or heat; or the right verb on another object; often it ends the episode."""
    goal = _pick(tuple(scene.goal), rng)
    others = [f for f in scene.foods if f != goal] or [goal]
    food = goal if rng.random() < 0.6 else _pick(others, rng)
    held = [f for f in scene.foods if scene.place[f] == "held"]
    if held and rng.random() < 0.7:
        food = _pick(held, rng)
    tool = "knife" if rng.random() < 0.85 else _pick((*scene.place, "oven"), rng)
    source = _pick(("stove", "oven"), rng) if rng.random() < 0.8 else _pick(("counter", "table", "fridge", "knife", "BBQ"), rng)
    return _pick(
        (
            f"{_pick(tuple(CUT.values()), rng)} {food} with {tool}",
            f"cook {food} with {source}",
            f"eat {food}",
            f"{_pick(tuple(CUT.values()), rng)} {food} with {tool}",
            f"cook {food} with {source}",
        ),
        rng,
    )


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """A command about something that is not in sight, or not where the command says."""
    unseen = [f for f in FOODS if f not in scene.place]
    thing = _pick(unseen, rng) if rng.random() < 0.6 or not scene.place else _pick(tuple(scene.place), rng)
    return _pick(
        (
            f"take {thing} from {_pick(PLACES, rng)}",
            f"take {thing} from {_pick(PLACES, rng)}",
            f"cook {thing} with stove",
            f"{_pick(tuple(CUT.values()), rng)} {thing} with knife",
            f"drop {thing}",
            f"eat {thing}",
            f"take {thing}",
        ),
        rng,
    )


def premature(scene: Scene, rng: np.random.Generator) -> str:
    return _pick(
        (
            "prepare meal",
            "prepare meal",
            "eat meal",
            "take knife from counter",
            "open fridge",
            "close fridge",
            f"eat {_pick(tuple(scene.goal), rng)}",
        ),
        rng,
    )


def malformed(scene: Scene, rng: np.random.Generator) -> str:
    """Commands with a missing, doubled or wrong part, as a language model writes them."""
    if rng.random() < 0.25:
        return _pick(NOISE, rng)
    things = [*scene.place, *PLACES]
    a, b = _pick(things, rng), _pick(things, rng)
    goal = _pick(tuple(scene.goal), rng)
    return _pick(
        (
            f"take {a} {b}",
            f"take {goal} {scene.place.get(goal, b)}",
            f"{_pick(tuple(CUT.values()), rng)} {a} with {b}",
            f"cook {a} with {b}",
            f"cook {a}",
            f"{_pick(tuple(CUT.values()), rng)} {a}",
            f"open {a}",
            f"take {a} with {b}",
            f"cook {goal} from {b}",
            f"take {a} from {b}",
            f"fry {a}",
            f"put {a}",
            f"take from {b}",
            f"drop {a} from {b}",
            f"eat {a} with {b}",
            f"prepare {a}",
            f"take {a} from",
        ),
        rng,
    )


def garbled(scene: Scene, rng: np.random.Generator) -> str:
    """A command gone wrong in the way a language model at temperature 1 writes: cut, doubled, run into another, run on."""
    command = (expert, near_miss, admissible_like)[int(rng.integers(3))](scene, rng).split()
    other = (expert, near_miss, absent, premature)[int(rng.integers(4))](scene, rng).split()
    at = int(rng.integers(1, len(command) + 1))
    words = [*scene.place, *" ".join(scene.text.values()).split(), *PLACES, "meal", "with", "from", "take", "cook", "@state", "@add"]
    tail = [_pick(words, rng) for _ in range(int(rng.integers(1, 9)))]
    kind = int(rng.integers(5))
    if kind == 0:
        return " ".join(command[at:] or other[1:])
    if kind == 1:
        return " ".join(command[:at] + other)
    if kind == 2:
        return " ".join(command + tail)
    return " ".join((command[:at] if kind == 3 else []) + tail)


def seek(scene: Scene, rng: np.random.Generator) -> str:
    """Mostly looking for things where they are not: what a policy does that has learned what dishes need, not where things are."""
    draw = rng.random()
    unseen = [f for f in FOODS if f not in scene.place]
    thing = "knife" if draw < 0.2 else _pick(unseen, rng) if draw < 0.75 else _pick(tuple(scene.place) or unseen, rng)
    spots = [p for p in ("counter", "table", "fridge", "fridge") if p != scene.place.get(thing)]
    kind = rng.random()
    return f"take {thing} from {_pick(spots, rng)}" if kind < 0.75 else f"take {thing}" if kind < 0.85 else absent(scene, rng)


def fuss(scene: Scene, rng: np.random.Generator) -> str:
    """Working on things that the recipe does not want: taken, cut, cooked again and again, put away, eaten. Nothing is lost by it."""
    spare = [f for f in scene.foods if f not in scene.goal]
    if not spare:
        return "open fridge" if scene.text.get("fridge") == "closed" else anything(scene, rng)
    held = [f for f in spare if scene.place[f] == "held"]
    if not held or rng.random() < 0.15:
        food = _pick(spare, rng)
        return f"take {food}" if scene.place[food] in ("held", "floor") else f"take {food} from {scene.place[food]}"
    food = _pick(held, rng)
    cut = _pick(tuple(CUT.values()), rng)
    return _pick(
        (
            f"cook {food} with stove",
            f"cook {food} with oven",
            f"cook {food} with {_pick(('stove', 'oven'), rng)}",
            _with_knife(scene, f"{cut} {food} with knife"),
            _with_knife(scene, f"{cut} {food} with knife"),
            f"eat {food}" if rng.random() < 0.5 else f"drop {food}",
            f"put {food} on {_pick(('counter', 'table', 'stove'), rng)}",
            f"insert {food} into {_pick(('fridge', 'oven'), rng)}",
        ),
        rng,
    )


def move(scene: Scene, rng: np.random.Generator) -> str:
    """A cook who prepares no meal but moves things about all the time, the recipe's too."""
    action = expert(scene, rng)
    return action if rng.random() < 0.4 and action not in ("prepare meal", "eat meal", "look") else _rearrange(scene, rng)


def _rearrange(scene: Scene, rng: np.random.Generator) -> str:
    """Putting things down, away and back, finished ones most; reaching for them where they were; cutting what is cut already."""
    finished = [f for f in scene.foods if not scene.text[f].endswith("uncut") or scene.text[f].split()[0] in ("fried", "roasted")]
    things = [k for k in scene.place if k not in ("fridge", "oven")]
    if not things:  # a room without things
        return anything(scene, rng)
    thing = _pick([*things, *["knife"] * ("knife" in things), *finished * 3], rng)
    spot = scene.place[thing]
    kind = rng.random()
    if kind < 0.18:
        return f"{_pick(('open', 'close'), rng)} {_pick(('fridge', 'fridge', 'oven'), rng)}"
    if spot == "held":
        if kind < 0.5 and thing in finished:
            return _with_knife(scene, f"{_pick(tuple(CUT.values()), rng)} {thing} with knife")
        places = ("counter", "table", "stove")
        return _pick(
            (f"drop {thing}", f"put {thing} on {_pick(places, rng)}", f"insert {thing} into {_pick(('fridge', 'oven'), rng)}"), rng
        )
    if kind < 0.5:
        return f"take {thing} from {_pick([p for p in PLACES if p not in (spot, 'floor')], rng)}"
    return f"take {thing}" if spot == "floor" or kind > 0.9 else f"take {thing} from {spot}"


def anything(scene: Scene, rng: np.random.Generator) -> str:
    """One draw from all the ways to act badly."""
    if scene.rooms and rng.random() < 0.2:
        return wander(scene, rng)
    kind = rng.choice(5, p=[0.3, 0.32, 0.16, 0.08, 0.14])
    return (admissible_like, near_miss, absent, premature, malformed)[int(kind)](scene, rng)


def _pick(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
