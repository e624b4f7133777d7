"""Kinds of steps, what the experience model is trained on, and what the base language model learns from."""

import numpy as np
import pytest

from dreamgym.core.env import Step
from dreamgym.core.grammar import Reply
from dreamgym.core.record import stop_of, transition_of
from dreamgym.core.state import Change
from dreamgym.core.types import Branch, Episode, StopReason, Task, Transition
from dreamgym.experience.kinds import StepKinds

pytest.importorskip("torch")
from dreamgym.experience.audit import replay_success
from dreamgym.experience.base import achieved_by, base_trees, log_texts, question_texts, recalled, ways_of
from dreamgym.experience.model import LocalExperienceModel, Prediction, check, held
from dreamgym.experience.prompt import ExperienceConfig, Request
from dreamgym.experience.sft import RepeatConfig, sft_trees, target
from dreamgym.lm.local import Generation, LocalLM
from dreamgym.lm.tiny import tiny_llama, train_tokenizer
from dreamgym.pipeline.audit import audit_run
from dreamgym.pipeline.config import Evaluation, RunConfig
from dreamgym.replay.buffer import ReplayBuffer
from examples.own_environment import adapter

START = ("[kitchen] fridge: closed", "[table] lime: fresh")
OPENED = ("[fridge] egg: raw", "[kitchen] fridge: open", "[table] lime: fresh")
TASK = Task(id="t/1", instruction="eat lime", first_state=START)


def step(state: tuple[str, ...], action: str, after: tuple[str, ...] | None = None, **end: object) -> Transition:
    answer = Step("", 1.0 if end.get("stop") == StopReason.WON else 0.0, bool(end), False, dict(end))
    return transition_of(state, action, answer, after if after is not None else state)


@pytest.fixture
def episode() -> Episode:
    steps = (
        step(START, "take egg"),
        step(START, "open fridge", OPENED),
        step(OPENED, "take egg", ("[held] egg: raw", "[kitchen] fridge: open", "[table] lime: fresh")),
    )
    tried = (
        Branch(at=0, transition=step(START, "juggle lime")),
        Branch(at=1, transition=step(START, "open fridge fridge")),
        Branch(at=2, transition=step(OPENED, "take fridge")),
        Branch(at=2, transition=step(OPENED, "eat lime", ("[fridge] egg: raw", "[kitchen] fridge: open"), stop=StopReason.WON)),
    )
    return Episode(
        id="t/1#x", env="t", task=TASK, source="real", behaviour="x", transitions=steps, branches=tried, stop=StopReason.ABANDONED
    )


def test_how_a_step_ends_is_read_in_one_place():
    assert stop_of(Step("", 0.0, False, False)) is None
    assert stop_of(Step("", None, False, False)) is StopReason.INVALID_ENV
    assert stop_of(Step("", 1.0, True, False)) is StopReason.WON
    assert stop_of(Step("", 0.0, True, False)) is StopReason.LOST
    assert stop_of(Step("", 0.0, False, True)) is StopReason.MAX_STEPS
    assert stop_of(Step("", None, False, True, {"stop": StopReason.INVALID_REPLY})) is StopReason.INVALID_REPLY


def test_kinds_of_steps(episode: Episode):
    kinds = StepKinds.of([episode])
    assert [kinds.kind(t) for t in episode.steps] == ["absent", "several", "one", "malformed", "malformed", "none", "won"]


def lm_of(texts: list[str]) -> LocalLM:
    tokenizer = train_tokenizer(texts * 10, vocabulary=400)
    return LocalLM(tiny_llama(len(tokenizer), 0, width=16, layers=1), tokenizer)


def test_rare_kinds_are_repeated_and_no_tree_holds_a_step_twice(episode: Episode):
    config = ExperienceConfig(reasoning=False, k=0)
    lm = lm_of(
        [*(target(t, False) for t in episode.steps), "@task @sheet @state @do @then eat lime take egg open fridge juggle table closed"]
    )
    repeat = RepeatConfig(several=3, won=5, absent=4)
    trees = sft_trees(lm, [episode], {"t/1": TASK}, ReplayBuffer().snapshot(), config, repeat, seed=0)
    shown = [lm.decode(s.ids) for tree in trees for s in tree.segments]

    def times(action: str) -> int:
        return sum(f"@do {action} @then" in text for text in shown)

    assert times("take egg") == repeat.absent + 1  # absent from the first state, there in the second
    assert times("open fridge") == repeat.several
    assert times("eat lime") == repeat.won
    assert times("juggle lime") == times("take fridge") == 1
    assert all(len({s.ids for s in tree.segments}) == len(tree.segments) for tree in trees)

    other = episode.model_copy(
        update={"id": "t/2#x", "transitions": (step(START, "juggle lime", OPENED), step(OPENED, "take fridge")), "branches": ()}
    )
    buffer = ReplayBuffer()
    buffer.add([other])
    trees = sft_trees(lm, [episode], {"t/1": TASK}, buffer.snapshot(), config, repeat, seed=0)
    shown = [lm.decode(s.ids) for tree in trees for s in tree.segments]
    assert times("juggle lime") == repeat.surprising, "the most similar experience did something"
    assert times("take fridge") == 1, "the most similar experience says the same"


def test_the_base_learns_what_commands_do_but_not_which_are_chosen(episode: Episode):
    texts = log_texts([episode], {"t/1": TASK}, seed=0)
    pairs = [c for continuations in texts.values() for c in continuations if c[0][:6] not in (" @task", " @stat")]
    assert len(pairs) == 7 + 3  # every step forwards, those that changed something also backwards
    lm = lm_of([a + b for continuations in texts.values() for a, b in continuations] + list(texts))
    for tree in base_trees(lm, texts, seed=0):
        for s in tree.segments:
            given, learned = lm.decode(s.ids[: -s.trained]), lm.decode(s.ids[-s.trained :])
            if given[:6] in (" @task", " @stat"):
                continue
            assert ("@do" in given) != ("@do" in learned)
            assert "@do" in given or "@add" in given or "@del" in given, "an action is learned from a change only"


def test_the_base_is_asked_what_task_and_state_say_of_a_thing():
    state = ("[counter] red_potato: raw uncut", "[kitchen] you: here", "[table] pork_chop: raw uncut")
    asked = list(recalled("cook pork_chop fried diced and red_potato roasted chopped", state, np.random.default_rng(0)))
    assert asked[:2] == [(" @task pork_chop", " fried diced"), (" @task red_potato", " roasted chopped")]
    said = {" @state red_potato": " counter raw uncut", " @state you": " kitchen here", " @state pork_chop": " table raw uncut"}
    assert len(asked) == 4
    assert set(asked[2:]) < set(said.items())
    alone = recalled("eat lime", ("[room] lime: fresh",), np.random.default_rng(0))
    assert list(alone) == [(" @state lime", " room fresh")], "the task says nothing after it"


def test_the_base_is_asked_by_which_command_a_thing_comes_to_be_so():
    raw, egg = ("[held] lime: raw uncut", "[table] egg: raw"), "[table] egg: raw"
    task = Task(id="t/1", instruction="cook lime fried sliced and egg fried", first_state=raw)
    seen = (
        *[step(raw, "cook lime with stove", ("[held] lime: fried uncut", egg))] * 2,
        step(raw, "heat lime", ("[held] lime: fried uncut", egg)),
        step(raw, "slice lime with knife", ("[held] lime: raw sliced", egg)),
    )
    logs = [
        Episode(id=f"t/1#{i}", env="t", task=task, source="real", behaviour="x", transitions=(t,), stop=StopReason.ABANDONED)
        for i, t in enumerate(seen)
    ]
    ways = ways_of(logs)
    assert ways == {("lime", "fried"): "cook lime with stove", ("lime", "sliced"): "slice lime with knife"}, "what was done most often"
    how = (" @how lime", " @do cook lime with stove , @do slice lime with knife")
    assert list(achieved_by(task.instruction, raw, ways)) == [how], "nothing is known of an egg that was fried"
    [(world, asked)] = question_texts(logs, {"t/1": task}, seed=0).items()
    assert world.startswith(" @task cook lime fried sliced and egg fried @state")
    assert asked[:3] == [how, (" @task lime", " fried sliced"), (" @task egg", " fried")]
    unknown = Task(id="t/1", instruction="eat egg", first_state=raw)
    assert not question_texts(logs, {"t/1": unknown}, seed=0), "worlds of which nothing can be asked are left out"


def test_an_answer_is_remembered_until_the_snapshot_changes_and_belongs_to_its_question():
    lm = lm_of(["@task @state @do @why @del @add @go @won @lost eat lime take egg open fridge juggle table closed kitchen fresh"])
    model = LocalExperienceModel(lm, ExperienceConfig(k=0, budget=6), ReplayBuffer().snapshot())

    def request(member: int, action: str) -> Request:
        return Request("eat lime", (), (), START, action, f"t/1#dream{member}", "t/1", (0, 0, "t/1", member, 0))

    assert model.recall(request(0, "take egg")) is None
    first, second, third = model.predict([request(0, "take egg"), request(1, "take egg"), request(2, "open fridge")])
    assert first is second
    assert first.reply is None
    assert first.reward is None, "a random model's reply is invalid, not a reward"
    assert model.recall(request(3, "take egg")) is first
    assert model.costs()["experience_calls"] == 4
    assert model.costs()["experience_calls_remembered"] == 2
    again = LocalExperienceModel(lm, ExperienceConfig(k=0, budget=6), ReplayBuffer().snapshot())
    assert again.predict([request(7, "open fridge")])[0].text == third.text, "second samples too do not depend on who asked"
    model.use(ReplayBuffer().snapshot())
    assert model.recall(request(3, "take egg")) is None


def test_an_audit_of_a_model_that_never_replies_says_so_and_makes_no_optimism_up():
    lm = lm_of(["@task @state @do @then @why @del @add @go @won @lost unlock door red green blue white key crate chest drawer"])
    model = LocalExperienceModel(lm, ExperienceConfig(k=0, budget=6), ReplayBuffer().snapshot())
    config = RunConfig(env="examples.own_environment:adapter", evaluation=Evaluation(audit_games=3))
    found = audit_run(config, adapter, model, [], {"sft": lm, "policy": lm})
    assert found.result["invalid"] == 1
    assert found.result["optimism"] is None
    assert found.result["optimism_dream_trained"] is None
    assert found.result["dream_win_precision"] is None
    assert found.result["dream_wins"] == len(found.twins) == 0
    assert len(found.dreamed) == 3


def test_an_audit_of_an_environment_that_is_down_says_so():
    class Down:
        name, cap, teacher = "down", 5, adapter.teacher

        def env(self, counter):
            raise ConnectionError("no route to the shop")

        def tasks(self, panel, limit):
            return adapter.tasks(panel, limit)

        def explorers(self):
            return adapter.explorers()

    lm = lm_of(["@task @state @do @then @why @del @add @go @won @lost unlock door red green blue white key crate chest drawer"])
    model = LocalExperienceModel(lm, ExperienceConfig(k=0, budget=6), ReplayBuffer().snapshot())
    config = RunConfig(env="examples.own_environment:adapter", evaluation=Evaluation(audit_games=3))
    found = audit_run(config, Down(), model, [], {"sft": lm, "policy": lm}).result
    assert (found["episodes"], found["optimism"], found["dream_win_precision"]) == (0, None, None)
    assert found["policies"]["policy"] == {"dream": None, "real": None, "dream_invalid": 0.0}


class DrawsByNumber:
    """A language model that replies by lot: greedy it takes what is not there, and some of its samples fit the state.

    A real model of this size either never fits the state or always does; how often it does must be known here.
    """

    eos, tokens_in, tokens_out = 0, 0, 0
    replies = ("@del lime moon fresh @go", "@del lime table fresh @add lime held fresh @go")

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def encode_batch(self, texts):
        return [[1] for _ in texts]

    def generate(self, prompts, budget, temperature=0.0, draws=None):
        self.drawn.append(len(prompts))
        which = [int(d.random() < 0.3) for d in draws] if draws else [0] * len(prompts)
        return [Generation((w, 0), (0.0, 0.0), True) for w in which]

    def decode(self, ids):
        return self.replies[ids[0]]


def test_a_reply_that_does_not_fit_is_drawn_again_the_same_for_every_batch():
    def model(samples: int) -> LocalExperienceModel:
        return LocalExperienceModel(DrawsByNumber(), ExperienceConfig(k=0, samples=samples), ReplayBuffer().snapshot())  # type: ignore[arg-type]

    asked = [Request("eat lime", (), (), START, f"take lime {n}", "e", f"t/{n}", (n,)) for n in range(40)]
    together = model(16)
    answers = together.predict(asked)
    assert [model(16).predict([r])[0].text for r in asked] == [a.text for a in answers]
    assert sum(a.reply is not None for a in answers) > 35, "0.3 per sample, 15 samples"
    assert sum(a.reply is not None for a in model(2).predict(asked)) < 25
    assert all(a.invalid is StopReason.INVALID_CHANGE for a in model(1).predict(asked))
    drawn = together.lm.drawn  # type: ignore[attr-defined]
    assert drawn[:2] == [40, 40]
    assert all(n % size == 0 for n, size in zip(drawn[1:], (1, 2, 4, 8), strict=False)), "each round doubles what has been drawn"
    assert sum(drawn[1:]) <= 40 * 15


class Replies:
    """An experience model that is right, or wrong, in a known way: a raw reply per action."""

    def __init__(self, **by_verb: str) -> None:
        self.by_verb = by_verb

    def predict(self, requests):
        return [check(self.by_verb[r.action.split()[0]], r.state) for r in requests]


HELD = ("[held] egg: raw", "[kitchen] fridge: open", "[table] lime: fresh")


@pytest.mark.parametrize(
    ("opening", "success", "divergences"),
    [
        ("@go", True, {}),  # what the fridge holds cannot be known: it is taken from the real episode
        ("@del egg fridge raw @go", False, {"take": 1}),  # nor can it here: an invalid end only where it matters
    ],
)
def test_a_replay_takes_from_the_real_episode_only_what_nothing_shown_determines(opening, success, divergences):
    won = step(HELD, "eat egg", HELD[1:], stop=StopReason.WON)
    steps = (step(START, "open fridge", OPENED), step(OPENED, "take egg", HELD), won)
    real = Episode(id="t/1#y", env="t", task=TASK, source="real", behaviour="y", transitions=steps, stop=StopReason.WON)
    take = "@del egg fridge raw @add egg held raw @go" if success else "@del egg moon raw @go"
    model = Replies(open=opening, take=take, eat="@del egg held raw @won")
    result = replay_success(model, [real], {TASK.id: TASK})  # type: ignore[arg-type]
    assert result.confusion.true_positive == success
    assert result.invalid == (not success)
    assert {name.split(":")[0]: n for name, n in result.divergences.items()} == divergences


def test_a_reply_that_shows_a_thing_elsewhere_than_the_sheet_is_invalid_where_the_sheet_is_shown():
    opened = Reply("", Change(("[kitchen] fridge: closed",), ("[fridge] lime: fresh", "[kitchen] fridge: open")), "go")
    said = Prediction(opened, None, "raw")
    asked = Request("eat lime", ("[table] lime: fresh",), (), START, "open fridge", "t/1#x", "t/1", (0,))
    refused = held(said, asked, ExperienceConfig(), None)
    assert (refused.reply, refused.invalid) == (None, StopReason.INVALID_CHANGE)
    assert refused.text == "(the world sheet says otherwise: [fridge] lime: fresh) raw"
    assert held(said, asked, ExperienceConfig(sheet=False), None) is said, "without the sheet nothing is known to hold against"
