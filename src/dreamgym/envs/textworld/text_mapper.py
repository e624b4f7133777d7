"""From TextWorld's texts to the abstract state, for logs that hold no fact database.

A room reads like a chatty tour: each fixture is introduced ("Look out! It's a- oh, never mind, it's just a fridge."),
then its content is listed ("The fridge contains a raw red tuna and a carrot.") or missed ("Empty! What kind of
nightmare TextWorld is this?"), often without a name, and with remarks in between. So the tour is read sentence by
sentence: each one introduces the next fixture, tells the content of the present one, or is a remark. No name of a thing
is known beforehand. A surface is told from a container by its top, which is always described; a closed container may
pass without a word on its state.

The lines are those of ``FactMapper`` less what no text shows: ``fresh``, ``uncut``, ``sharp``, ``plain``, ``edible``.
Where an action loses the game, TextWorld's texts are still those from before that action.
"""

import re

from dreamgym.core.errors import DataError
from dreamgym.core.state import LINE, State, line, make_state
from dreamgym.envs.textworld.mapper import FLOOR, HELD, ROOM, View, one_word

_COOKED = {"raw", "fried", "roasted", "grilled", "burned"}
_CUT = {"chopped", "sliced", "diced"}

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=Oh well)\s+")  # the grammar has no full stop after "Oh well"
_STATE = "open(?:ed)?|closed|locked"
_LEAD = "see|seeing|make out|notice|find|reveal|onto|follow it to|other than|there,|[Ii]t's|it's just|Here's"
_SPOT = "here|nearby|close by|right there by you|in (?:the|a) (?:room|corner)"
_THINGS = r"(?P<things>(?:an?|some) [^.!?]+?)"
_INTRODUCED = re.compile(
    rf"(?:.*\b(?:{_LEAD}) a|a|A(?=n? (?:{_STATE})))n? (?:(?P<state>{_STATE}) )?(?:[a-z]+ looking )?(?P<name>[\w '-]+?)"
    rf"(?:, which looks [a-z ]+,)?(?: is)?(?: (?:{_SPOT}))?(?:[.!]|, so\b.*)"
)
_LISTED = re.compile(
    r"(?:On the .+? you (?:can )?(?:see|make out)|You see(?=.+ on the )|The .+? (?P<inside>contains))"
    rf" {_THINGS}(?: on the .+?)?(?:, so\b.*)?[.!]"
)
_BARE_TOP = re.compile(r"(?:(?:a thing|anything|nothing) on (?:it|this)|the thing is empty|appears to be empty|taken everything off it)\b")
_EMPTY_INSIDE = re.compile(r"The .+? is empty[,!]|Empty!")
_TITLE = re.compile(r"-= (.+?) =-")
_ON_FLOOR = re.compile(rf"\bThere (?:is|are) {_THINGS} on the floor\.")
_CARRIED = re.compile(rf"You are carrying: {_THINGS}\.?\s*$")


class TextMapper:
    """``FactMapper`` for texts: ``observe`` what ``look`` and ``inventory`` print after reset and after every step."""

    def __init__(self, view: View = "carried") -> None:
        self.view = view
        self._known: dict[str, str] = {}

    def reset(self) -> None:
        self._known = {}

    def observe(self, description: str, inventory: str) -> State:
        visible, open_places = visible_things(description, inventory)
        if self.view == "carried":
            hidden = {thing: text for thing, text in self._known.items() if _place(text) not in open_places}
            visible = hidden | visible
        self._known = visible
        return make_state(visible.values())


def visible_things(description: str, inventory: str) -> tuple[dict[str, str], set[str]]:
    """Lines of all that is in sight by thing, and the places whose content is in sight."""
    title = _TITLE.search(description)
    if title is None:
        raise DataError(f"the text describes no room, it has no title like '-= Kitchen =-': {description[:80]!r}")
    here = one_word(title[1].lower())
    fixtures, contents = read_tour(description)
    contents += [(FLOOR, m["things"]) for m in _ON_FLOOR.finditer(description)]
    contents += [(HELD, m["things"]) for m in _CARRIED.finditer(inventory)]
    surfaces = sorted(name for name, kind in fixtures.items() if kind == "surface")
    seen = {name: line(here, name, kind) for name, kind in fixtures.items() if kind != "surface"}
    seen[ROOM] = line(here, ROOM, " ".join(surfaces))
    for place, things in contents:
        for phrase in re.split(r", | and ", things):
            name, text = read_thing(phrase)
            seen[name] = line(place, name, text)
    return seen, {HELD, FLOOR, *(name for name, kind in fixtures.items() if kind != "closed")}


def read_tour(description: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What a room's fixtures are (``open``, ``closed``, ``surface``), and the things listed in or on them."""
    fixtures: dict[str, str] = {}
    contents: list[tuple[str, str]] = []
    fixture = ""
    _, _, tour = description.strip().partition("\n\n")
    for sentence in _SENTENCE_END.split(tour.partition("\n\n")[0].strip()):
        if listed := _LISTED.fullmatch(sentence):
            fixtures[fixture] = "open" if listed["inside"] else "surface"
            contents.append((fixture, listed["things"]))
        elif _BARE_TOP.search(sentence):
            fixtures[fixture] = "surface"
        elif _EMPTY_INSIDE.match(sentence):
            fixtures[fixture] = "open"
        elif introduced := _INTRODUCED.fullmatch(sentence):
            fixture = one_word(introduced["name"])
            fixtures.setdefault(fixture, "open" if (introduced["state"] or "").startswith("open") else "closed")
    return fixtures, contents


def read_thing(phrase: str) -> tuple[str, str]:
    """``a diced roasted red potato`` as its name and what it went through, cooking first."""
    words = phrase.split()[1:]
    cut = words.pop(0) if words[0] in _CUT else ""
    cooked = words.pop(0) if words[0] in _COOKED else ""
    return one_word(" ".join(words)), f"{cooked} {cut}".strip()


def _place(state_line: str) -> str:
    m = LINE.fullmatch(state_line)
    return m["place"] if m else ""
