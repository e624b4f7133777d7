"""Written tasks: what is asked, what is kept of the drafts and why not."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.core.grammar import (
    GrammarError,
    parse_instruction,
    parse_placed,
    render_instruction,
    render_lack,
    render_placed,
    render_variation,
)
from dreamgym.core.types import Task
from dreamgym.curriculum.config import GeneratorConfig

pytest.importorskip("torch", reason="needs the extra [train]")
from dreamgym.curriculum.generator import Draft, Phrases, TaskGenerator, world_of
from dreamgym.curriculum.worlds import Lack, LoggedWorlds, Placed, placed
from dreamgym.curriculum.writing import Asked, Choice

FOODS = ("carrot", "lime", "egg", "leek", "bean")


def task(number: int, food: str, how: str) -> Task:
    """A world of two foods, one of them in a fridge that the first state shows closed."""
    other = FOODS[(FOODS.index(food) + 1) % len(FOODS)]
    state = (f"[counter] {food}: raw", "[kitchen] fridge: closed")
    return Task(id=f"t/{number}", instruction=f"cook {food} {how}", first_state=state, sheet=(f"[fridge] {other}: raw",))


LOGGED = [task(i, FOODS[i % 5], ("fried", "roasted", "boiled")[i % 3]) for i in range(30)]
TASKS = {t.id: t for t in LOGGED}
VALUES = {t.id: {"value": 0.25 if t.id in ("t/0", "t/7") else 0.1, "visits": 1.0} for t in LOGGED}


class Drafts:
    """Says what it was given, over and over, and keeps what it was asked."""

    imitates = True

    def __init__(self, *drafts: str | None, lines: Mapping[str, Placed] | None = None) -> None:
        self.drafts, self.lines, self.asked, self.lacking = drafts, lines or {}, list[Asked](), list[Lack]()

    def write(self, asked: Sequence[Asked]) -> list[str | None]:
        self.asked += asked
        return [self.drafts[i % len(self.drafts)] for i in range(len(asked))]

    def furnish(self, lacking: Sequence[Lack]) -> list[Placed | None]:
        self.lacking += lacking
        return [self.lines.get(x.thing) for x in lacking]

    def choose(self, choices: Sequence[Choice]) -> list[int | None]:
        return [c.nearness.index(min(c.nearness)) if c.drafts else None for c in choices]


def vary(writer: Drafts, **config: float) -> list[Draft]:
    return TaskGenerator(writer, LOGGED, GeneratorConfig(parents=2, drafts=len(writer.drafts)).model_copy(update=config), 0).vary(
        TASKS, VALUES, 3
    )


def test_every_draft_that_is_not_kept_has_its_reason():
    # t/0 and t/7 are the parents: a carrot on the counter and a lime in the fridge, an egg and a leek
    drafts = ("cook lime boiled", None, "cook egg fried", "cook lime fried roasted", "cook carrot fried", "cook fridge fried")
    found = vary(Drafts(*drafts, "Cook lime fried", "cook lime lime"))
    assert [(d.instruction, d.verdict) for d in found if d.parent == "t/0"] == [
        ("cook lime boiled", "kept"),
        (None, "unreadable"),
        ("cook egg fried", "names what is not in its world: egg (unreadable)"),
        ("cook lime fried roasted", "malformed"),
        ("cook carrot fried", "like another task of its world"),
        ("cook fridge fried", "malformed"),
        ("Cook lime fried", "malformed"),
        ("cook lime lime", "names a thing twice: lime"),
    ]
    kept = [d.task for d in found if d.task and d.parent == "t/0"]
    assert len(kept) == 1
    assert (kept[0].lineage, world_of(kept[0])) == (("t/0",), "t/0")
    assert (kept[0].first_state, kept[0].sheet) == (TASKS["t/0"].first_state, TASKS["t/0"].sheet), "one world for all of its tasks"


def test_tasks_are_alike_where_they_ask_for_the_same_and_not_where_a_word_differs():
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.adapter import TextWorldAdapter
    from dreamgym.envs.textworld.behaviours import CUT, HEAT
    from dreamgym.pipeline.logs import load_logs, tasks_of
    from dreamgym.pipeline.stages import shipped

    logged = [t for t in tasks_of(load_logs([shipped("logs-standard.jsonl.xz")])).values() if t.instruction.count(" and ") == 1]
    adapter = TextWorldAdapter("standard")
    generator = TaskGenerator(Drafts(), logged, GeneratorConfig(), 0, canonical=adapter.canonical)
    for t in logged[:60]:
        first, second = t.instruction.removeprefix("cook ").split(" and ")
        turned = f"cook {second} and {first}"
        assert adapter.canonical(turned) == adapter.canonical(t.instruction) == t.instruction
        assert generator._check(turned, t, [t.instruction]) == ("like another task of its world", pytest.approx(1.0))
        food, heat, cut = first.split()
        swaps = [(h, cut) for h in HEAT if h != heat] + [(heat, c) for c in CUT if c != cut]
        others = [text for how in swaps if generator.well_formed(text := f"cook {food} {' '.join(how)} and {second}")]
        assert len(others) >= 3
        assert {generator._check(text, t, [t.instruction])[0] for text in others} == {""}
    assert adapter.canonical("cook lime fried") == "cook lime fried", "no recipe: as it is"
    assert adapter.canonical("cook lime fried diced and lime fried diced") == "cook lime fried diced and lime fried diced"


def test_two_foods_that_swap_what_is_done_to_them_make_another_task():
    pytest.importorskip("textworld", reason="needs the extra [textworld]")
    from dreamgym.envs.textworld.adapter import TextWorldAdapter

    asked = "cook carrot fried diced and lettuce roasted chopped and red_onion grilled sliced"
    swapped = "cook carrot fried chopped and lettuce roasted diced and red_onion grilled sliced"
    world = Task(id="w", instruction=asked, first_state=(), sheet=())
    logged = [world, world.model_copy(update={"id": "other", "instruction": swapped})]
    adapter = TextWorldAdapter("hard")
    generator = TaskGenerator(Drafts(), logged, GeneratorConfig(), 0, canonical=adapter.canonical)
    assert generator._check(swapped, world, [asked])[0] == ""
    turned = "cook lettuce roasted chopped and carrot fried diced and red_onion grilled sliced"
    assert generator._alike(turned, [asked])


def test_a_chat_model_words_tasks_as_it_likes():
    class Free(Drafts):
        imitates = False

    logged = [
        Task(id=str(i), instruction=text, first_state=(), sheet=())
        for i, text in enumerate(["buy hiking boots, size 7, under 60.00 dollars", "buy a red mug for children, under 9.50 dollars"])
    ]
    draft = "buy waterproof hiking boots, size 8, and price lower than 90.00 dollars"
    assert not TaskGenerator(Drafts(), logged, GeneratorConfig(), 0).well_formed(draft), "no three words of it follow each other there"
    free = TaskGenerator(Free(), logged, GeneratorConfig(), 0)
    assert free.well_formed(draft)
    assert not free.well_formed("buy boots <|im_end|>")
    assert not free.well_formed(", .")


def test_of_two_drafts_alike_in_one_round_one_is_kept():
    child = TASKS["t/0"].model_copy(update={"id": "t/0~1.1", "instruction": "cook carrot boiled", "lineage": ("t/0",)})
    values = {"t/0": {"value": 0.25, "visits": 1.0}, child.id: {"value": 0.25, "visits": 1.0}}
    generator = TaskGenerator(Drafts("cook lime boiled"), LOGGED, GeneratorConfig(drafts=1), 0)
    found = generator.vary({"t/0": TASKS["t/0"], child.id: child}, values, 2)
    assert sorted(d.verdict for d in found) == ["kept", "like another task of its world"]


def test_a_parent_whose_children_teach_nothing_is_passed_over():
    child = TASKS["t/0"].model_copy(update={"id": "t/0~1.1", "instruction": "cook carrot boiled", "lineage": ("t/0",)})
    tasks = {"t/0": TASKS["t/0"], "t/1": TASKS["t/1"], child.id: child}
    values = {"t/0": {"value": 0.25, "visits": 1.0}, "t/1": {"value": 0.2, "visits": 1.0}, child.id: {"value": 0.0, "visits": 1.0}}
    generator = TaskGenerator(Drafts("cook lime boiled"), LOGGED, GeneratorConfig(parents=1, drafts=1), 0)
    assert [d.parent for d in generator.vary(tasks, values, 2)] == ["t/1"], "(0.25 + 0) / 2 is less than 0.2"
    unplayed = values | {child.id: {"value": 0.0, "visits": 0.0}}
    assert [d.parent for d in generator.vary(tasks, unplayed, 2)] == ["t/0"], "a child that nobody has played says nothing"


def test_what_its_world_lacks_is_written_into_it():
    writer = Drafts("cook egg fried", lines={"egg": Placed("sheet", "fridge", "raw")})
    first = next(d for d in vary(writer) if d.parent == "t/0")
    assert (first.verdict, first.furnished) == ("kept", ("[fridge] egg: raw",))
    assert first.task
    assert (first.task.first_state, first.task.lineage) == (TASKS["t/0"].first_state, ("t/0",))
    assert first.task.sheet == ("[fridge] egg: raw", "[fridge] lime: raw")
    lack = next(x for x in writer.lacking if x.world.id == "t/0")
    assert len(lack.alike) == 3
    assert all(placed(t, "egg") for t in lack.alike)
    values = {first.task.id: {"value": 0.2, "visits": 1.0}}
    generator = TaskGenerator(Drafts("cook egg boiled"), LOGGED, GeneratorConfig(drafts=1), 0)
    [draft] = generator.vary({first.task.id: first.task, **TASKS}, values, 5)
    assert draft.task
    assert (draft.task.sheet, draft.furnished) == (first.task.sheet, ()), "a child is in the world as it is now"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (("sheet", "cellar", "raw"), "no such place: cellar"),
        (("state", "fridge", "raw"), "nothing that a logged task names is in fridge (state)"),
        (("sheet", "lime", "raw"), "nothing that a logged task names is in lime (sheet)"),
        (("sheet", "fridge", "fried"), "no logged world says so of it: 'fried'"),
        (("sheet", "fridge", "raw raw"), "no logged world says so of it: 'raw raw'"),
        (("sheet", "fridge", "raw\u2028raw"), "no logged world says so of it: 'raw\\u2028raw'"),
        (("sheet", "fridge", ""), "no logged world says so of it: ''"),
        (("sheet", "the fridge", "raw"), "unreadable"),
    ],
)
def test_a_line_that_does_not_fit_into_its_world_is_refused(found, why):
    writer = Drafts("cook egg fried", lines={"egg": Placed(*found)})
    assert next(d for d in vary(writer) if d.parent == "t/0").verdict == f"names what is not in its world: egg ({why})"


def test_a_thing_belongs_where_the_place_has_its_things_in_this_world():
    """Some fridges stand open at the start, this one is closed."""
    open_one = Task(id="t/50", instruction="cook lime fried", first_state=("[fridge] lime: raw", "[kitchen] fridge: open"))
    worlds = LoggedWorlds([*LOGGED, open_one])
    assert worlds.furnished(TASKS["t/0"], "egg", Placed("state", "fridge", "raw")) == "in state, where nothing else is told of fridge"
    assert isinstance(worlds.furnished(open_one, "egg", Placed("state", "fridge", "raw")), Task)
    assert worlds.furnished(open_one, "egg", Placed("sheet", "fridge", "raw")) == "in sheet, where nothing else is told of fridge"


def test_an_element_with_a_number_is_not_told_of_twice():
    page, other = ('[7] button: "go"', '[8] field: ""'), ('[7] link: "go"', '[8] field: ""')
    logged = [Task(id=f"w/{i}", instruction="click link now", first_state=other) for i in range(3)]
    found = LoggedWorlds(logged).furnished(Task(id="w/9", instruction="click", first_state=page), "link", Placed("state", "7", '"go"'))
    assert found == "[7] is something else there"


def test_what_no_logged_world_has_is_not_asked_for():
    odd = [*LOGGED, Task(id="t/99", instruction="cook eel fried", first_state=("[eel] carrot: raw",))]
    writer = Drafts("cook eel fried")
    found = TaskGenerator(writer, odd, GeneratorConfig(parents=1, drafts=1), 0).vary(TASKS, {"t/0": VALUES["t/0"]}, 0)
    assert [d.verdict for d in found] == ["names what is not in its world: eel (no logged world has one)"]
    assert not writer.lacking


def test_where_nobody_picks_none_is_kept():
    class Undecided(Drafts):
        def choose(self, choices: Sequence[Choice]) -> list[int | None]:
            return [None for _ in choices]

    missing = "names what is not in its world: lime (unreadable)"
    assert {d.verdict for d in vary(Undecided("cook lime boiled"))} == {"none was chosen", missing}


def test_texts_without_lines_of_things_are_worded_as_logged_or_refused():
    plain = [Task(id=f"p/{c}", instruction=f"open the {c} box", first_state=(f"You see the {c} box.",)) for c in ("red", "blue")]
    phrases = Phrases(plain)
    assert phrases.missing("open the blue box", plain[1].first_state) == []
    assert phrases.follows("open the blue box")
    assert not phrases.follows("box the red open")


def test_of_sound_drafts_the_newest_is_kept():
    found = vary(Drafts("cook carrot boiled", "cook lime boiled"))
    verdicts = {d.instruction: d.verdict for d in found if d.parent == "t/0"}
    assert verdicts == {"cook carrot boiled": "another draft was chosen", "cook lime boiled": "kept"}


def test_the_most_valuable_played_tasks_are_varied_and_shown():
    writer = Drafts("cook lime boiled")
    vary(writer)
    assert {a.world.id for a in writer.asked} == {"t/0", "t/7"}
    for ask in writer.asked:
        assert len(ask.seeds) == 3
        assert ask.seeds[-1] == ask.world.instruction
    unplayed = {t: {"value": 0.25, "visits": 0.0} for t in TASKS}
    assert TaskGenerator(writer, LOGGED, GeneratorConfig(), 0).vary(TASKS, unplayed, 0) == []


def test_a_child_of_a_child_stays_in_its_world():
    first = next(d.task for d in vary(Drafts("cook lime boiled")) if d.task)
    values = {first.id: {"value": 0.2, "visits": 1.0}}
    generator = TaskGenerator(Drafts("cook lime roasted"), LOGGED, GeneratorConfig(drafts=1), 0)
    [draft] = generator.vary({first.id: first, **TASKS}, values, 5)
    assert draft.task
    assert draft.task.lineage == ("t/0", first.id)
    assert draft.task.id.startswith("t/0~5.")
    assert draft.task.id != first.id


def test_things_that_only_some_sheets_hold_are_things_everywhere():
    phrases = Phrases(LOGGED)
    assert phrases.missing("cook leek fried", LOGGED[0].first_state) == ["leek"]
    assert phrases.follows("cook leek fried"), "worded well, though its world lacks it"
    assert not phrases.follows("cook")
    assert not phrases.follows("")


@given(st.text(max_size=40))
def test_an_instruction_is_data(text):
    asked = render_variation([text, "x"], ("[a] b: c",), ("[d] e: f",))
    assert [w for w in asked.split(" ") if w.startswith("@")] == ["@seed", "@seed", "@sheet", "@state", "@new"]
    if text.strip():
        assert parse_instruction(render_instruction(text)) == text


@given(st.sampled_from(["state", "sheet"]), st.from_regex(r"[^\s\[\]]{1,12}", fullmatch=True), st.text(max_size=30).map(str.split))
def test_what_is_written_into_a_world_is_data(where, place, words):
    told = (where, place, " ".join(words))
    asked = render_lack([told], ("[a] b: c",), ("[d] e: f",), place)
    assert [w for w in asked.split(" ") if w.startswith("@")] == ["@like", f"@{where}", "@sheet", "@state", "@new"]
    assert parse_placed(render_placed(*told)) == told


@pytest.mark.parametrize("text", ["", "fridge raw", "@task fridge", "@sheet", "@sheet fridge raw ; egg", "@state fridge raw @won"])
def test_what_places_nothing_is_refused(text):
    with pytest.raises(GrammarError):
        parse_placed(text)


@pytest.mark.parametrize("text", ["", "cook @new", "cook lime ; eat it", "@task cook"])
def test_what_is_no_instruction_is_refused(text):
    with pytest.raises(GrammarError):
        parse_instruction(text)
