"""The cooking teacher: annotates logged transitions with the reasoning that an experience model should write (Eq. 5).

It is *privileged*: it knows the true outcome and never writes a verdict that contradicts it. What it writes follows
from instruction, sheet, state and outcome: what the action needs, where that is, whether the preconditions hold, what
the action yields, and, before anything can end the episode, goal against state item by item, one word of comparison each.
Where there are several rooms it first looks whether one is where the command can be done, quotes the recipe before it says what that
wants (else a tiny model takes what is wanted from the action, which is right nearly always), and says how far one is (``done 3 of 7``,
which the curriculum reads as progress). Where its rules do not explain the outcome it falls back on
``dreamgym.experience.annotate.before_after``.
"""

from dreamgym.core.state import LINE, State
from dreamgym.core.types import Task, Transition
from dreamgym.envs.textworld.behaviours import CUT, goal_of
from dreamgym.envs.textworld.rooms import DOOR, SURFACE, WAY, YOU, end_of, exit_of, floor_of
from dreamgym.experience.annotate import before_after

_CUTS = {verb: result for result, verb in CUT.items()}
_COOKS = {"stove": "fried", "oven": "roasted"}
_FAILS = "fails"

Things = dict[str, tuple[str, str]]
Goal = dict[str, tuple[str, str]]


class CookingTeacher:
    """``explain`` gives the reasoning of one transition of a task."""

    def explain(self, task: Task, t: Transition) -> str:
        things = {m["kind"]: (m["place"], m["text"] or "") for m in map(LINE.fullmatch, t.state) if m}
        words = t.action.split()
        changed = bool(t.change) or t.outcome != "go"
        trace = (_in_rooms if YOU in things else _trace)(words, things, goal_of(task.instruction), t)
        verdict = trace.rsplit(" , ", 1)[-1]
        agrees = (verdict == _FAILS) == (not changed) and (verdict in ("won", "lost")) == (t.outcome != "go")
        if not agrees or (verdict in ("won", "lost") and verdict != t.outcome):
            return before_after(t)
        if YOU not in things or not t.change or t.outcome != "go":
            return trace
        return f"{trace.removesuffix(verdict)}{_done(t.next_state, goal_of(task.instruction))} , {verdict}"


def _done(state: State, goal: Goal) -> str:
    """How far one is: of each thing of the recipe whether it is held, cooked and cut as wanted, and whether the meal is there."""
    things = {m["kind"]: (m["place"], m["text"] or "") for m in map(LINE.fullmatch, state) if m}
    whole = 3 * len(goal) + 1
    if "meal" in things:
        return f"done {whole} of {whole}"
    done = 0
    for food, wanted in goal.items():
        place, text = things.get(food, ("", ""))
        done += (place == "held") + sum(word in text.split() for word in wanted)
    return f"done {done} of {whole}"


def _trace(words: list[str], things: Things, goal: Goal, t: Transition) -> str:
    match words:
        case ["take", x, "from", p]:
            return _take(x, p, things)
        case ["take", x] if things.get(x, ("", ""))[0] == "floor":
            return f"{_at(x, things)} , works"
        case ["take", x]:
            return _take(x, None, things)
        case [verb, x, "with", tool] if verb in _CUTS:
            return _cut(_CUTS[verb], x, tool, things, goal)
        case ["cook", x, "with", source]:
            return _cook(x, source, things, goal)
        case ["eat", x]:
            return _eat(x, things, goal, t)
        case ["prepare", "meal"]:
            return _prepare(things, goal)
        case ["open", x]:
            if things.get(x, ("", ""))[1] != "closed":
                return f"{_at(x, things)} , not closed , {_FAILS}"
            return f"{_at(x, things)} , inside {_inside(x, t.added)} , works"
        case ["close", x]:
            return f"{_at(x, things)} , {'works' if things.get(x, ('', ''))[1] == 'open' else 'not open , ' + _FAILS}"
        case ["drop", x]:
            return f"{_at(x, things)} , {'works' if things.get(x, ('', ''))[0] == 'held' else 'not held , ' + _FAILS}"
        case ["put", x, "on", p]:
            fits = p in things.get("room", ("", ""))[1].split()
            return _put(x, [] if fits else [f"not on {p}"], fits, things)
        case ["insert", x, "into", p]:
            inside = things.get(p, ("", ""))[1]
            return _put(x, [f"{p} {inside or 'none'}"], inside == "open", things)
        case ["examine", *_] | ["look"] | ["inventory"]:
            return f"only looking , {_FAILS}"
        case _:
            return f"not understood , {_FAILS}"


def _in_rooms(words: list[str], things: Things, goal: Goal, t: Transition) -> str:
    """Where there are several rooms: the way, or first whether one is where the command can be done, then as in one room."""
    here = things[YOU][0]
    match words:
        case ["go", direction]:
            return _go(direction, here, things, t)
        case ["open" | "close" as verb, x] if things.get(x, ("", ""))[0] == DOOR:
            beside = any(things.get(exit_of(here, d), ("", ""))[1] == x for d in ("north", "south", "east", "west"))
            fits = things[x][1] == {"open": "closed", "close": "open"}[verb]
            return f"{_at(x, things)} , {'beside' if beside else 'not beside'} , {'works' if beside and fits else _FAILS}"
        case ["take" | "put" | "insert", _, _, spot] | ["cook", _, "with", spot] | ["open" | "close", spot]:
            pass
        case ["take", x]:
            spot = things.get(x, ("", ""))[0]
        case ["prepare", "meal"]:
            spot = "stove"
        case _:
            spot = ""
    around = {k: ("floor" if p == floor_of(here) else p, v) for k, (p, v) in things.items()}
    around["room"] = (here, " ".join(k for k, (p, v) in things.items() if p == here and v == SURFACE))
    trace = _trace(words, around, goal, t)
    room = spot.removesuffix("_floor") if spot.endswith("_floor") else things.get(spot, ("", ""))[0]
    if not spot or (spot not in things and not spot.endswith("_floor")) or room == "held":
        return trace
    return f"{spot} {room} you same , {trace}" if room == here else f"{spot} {room} you {here} differ , {_FAILS}"


def _go(direction: str, here: str, things: Things, t: Transition) -> str:
    """Whether there is a way, what stands in it, where it leads."""
    way = _at(exit_of(here, direction), things)
    if exit_of(here, direction) not in things:
        return f"{way} , {_FAILS}"
    door = things[exit_of(here, direction)][1]
    parts = [way] if door == WAY else [way, _at(door, things)]
    if door != WAY and things.get(door, ("", ""))[1] != "open":
        return " , ".join([*parts, _FAILS])
    after = {m["kind"]: m["place"] for m in map(LINE.fullmatch, t.added) if m}
    leads = after.get(YOU) or things.get(end_of(here, direction), ("", "nowhere"))[1]
    shown = [m["kind"] for m in map(LINE.fullmatch, t.added) if m and m["kind"] != YOU]
    return " , ".join([*parts, f"leads {leads}", f"shows {' '.join(shown)}" if shown else "nothing new", "works"])


def _at(x: str, things: Things) -> str:
    if x not in things:
        return f"{x} none"
    place, text = things[x]
    return f"{x} {place} {text}".rstrip()


def _take(x: str, p: str | None, things: Things) -> str:
    """Where x is against where it is looked for, and whether what it is in is open."""
    parts = [_at(x, things)]
    if x not in things:
        return f"{parts[0]} , {_FAILS}"
    place = things[x][0]
    if place == "held":
        return f"{parts[0]} , already held , {_FAILS}"
    if p is not None:
        parts.append(f"from {p} {'same' if p == place else 'differ'}")
    around = things.get(place, ("", ""))[1]
    if around in ("open", "closed"):
        parts.append(f"{place} {around}")
    works = p in (None, place) and around != "closed"
    return " , ".join([*parts, "works" if works else _FAILS])


def _recipe(x: str, goal: Goal, quoted: bool = False) -> str:
    """x held against the recipe's things, one by one; ``quoted``: with what the recipe says of each."""
    said = {food: f"{food} {' '.join(wanted)}" if quoted else food for food, wanted in goal.items()}
    return "recipe " + " ".join(f"{text} {'same' if food == x else 'differ'}" for food, text in said.items())


def _wants(x: str, goal: Goal, which: int, yields: str, quoted: bool) -> tuple[str, bool]:
    """What the recipe wants of x against what the action yields: the words, and whether they differ."""
    recipe = _recipe(x, goal, quoted)
    if x not in goal:
        return recipe, False
    wanted = goal[x][which]
    return f"{recipe} , wants {wanted} get {yields} {'same' if wanted == yields else 'differ'}", wanted != yields


def _cut(yields: str, x: str, tool: str, things: Things, goal: Goal) -> str:
    seen = _at(x, things)
    text = things.get(x, ("", ""))[1].split()
    if things.get(x, ("", ""))[0] != "held" or len(text) != 2:
        return f"{seen} , {'not held' if x in things else 'absent'} , {_FAILS}"
    if text[1] != "uncut":
        return f"{seen} , already cut , {_FAILS}"
    knife = _at(tool, things)
    if things.get(tool, ("", "")) != ("held", "sharp"):
        return f"{seen} , {knife} , no knife , {_FAILS}"
    wants, differ = _wants(x, goal, 1, yields, YOU in things)
    return f"{seen} , {knife} , {wants} , {'lost' if differ else 'works'}"


def _cook(x: str, source: str, things: Things, goal: Goal) -> str:
    seen = _at(x, things)
    text = things.get(x, ("", ""))[1].split()
    if things.get(x, ("", ""))[0] != "held" or len(text) != 2:
        return f"{seen} , {'not held' if x in things else 'absent'} , {_FAILS}"
    if text[0] == "burned":
        return f"{seen} , already burned , {_FAILS}"
    if source not in _COOKS:
        return f"{seen} , {source} cold , {_FAILS}"
    yields = _COOKS[source] if text[0] in ("raw", "fresh") else "burned"
    wants, differ = _wants(x, goal, 0, yields, YOU in things)
    return f"{seen} , {source} gives {yields} , {wants} , {'lost' if differ else 'works'}"


def _eat(x: str, things: Things, goal: Goal, t: Transition) -> str:
    seen = _at(x, things)
    place, text = things.get(x, ("", ""))
    if place != "held":
        return f"{seen} , {'not held' if x in things else 'absent'} , {_FAILS}"
    if x == "meal":
        return f"{seen} , wants meal get meal same , won"
    if len(text.split()) != 2 or text.split()[0] in ("raw", "burned"):
        return f"{seen} , not edible , {_FAILS}"
    return f"{seen} , edible , {_recipe(x, goal)} , {'lost' if x in goal else 'works'}"


def _prepare(things: Things, goal: Goal) -> str:
    parts, whole = [], "meal" not in things
    for food, (cooked, cut) in goal.items():
        place, text = things.get(food, ("", ""))
        same = place == "held" and text == f"{cooked} {cut}"
        whole = whole and same
        parts.append(f"wants {food} held {cooked} {cut} got {_at(food, things)} {'same' if same else 'differ'}")
    return " , ".join([*parts, "works" if whole else _FAILS])


def _inside(x: str, added: State) -> str:
    inside = [m["kind"] for m in map(LINE.fullmatch, added) if m and m["place"] == x]
    return " ".join(inside) or "nothing"


def _put(x: str, where: list[str], fits: bool, things: Things) -> str:
    """Where x is, then what speaks for or against the place."""
    seen = _at(x, things)
    if things.get(x, ("", ""))[0] != "held":
        return f"{seen} , not held , {_FAILS}"
    return " , ".join([seen, *where, "works" if fits else _FAILS])
