"""Laws of the packing, the lockstep and the sampler."""

import asyncio
import copy
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.core.env import Info, Step
from dreamgym.core.errors import BatchError, TrainingError
from dreamgym.core.lockstep import Lockstep
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import StopReason, Task
from dreamgym.pipeline.stats import paired_interval, pass_at

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.lm.fit import FitConfig, fit  # noqa: E402
from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.packing import IGNORED, Segment, Tree, collate, pack  # noqa: E402
from dreamgym.lm.tiny import tiny_llama, train_tokenizer  # noqa: E402
from dreamgym.lm.words import add_whole_words  # noqa: E402
from dreamgym.rl.policy import Sample  # noqa: E402
from dreamgym.rl.rollout import Seat, rollouts  # noqa: E402


@pytest.fixture(scope="module")
def lm():
    words = ["", "the", "cat", "sat", "on", "@do", "mat", "dog", "ran", "to", "@go", "carrot"]
    rng = random.Random(0)
    tokenizer = train_tokenizer([" " + " ".join(rng.choices(words[1:], k=12)) for _ in range(400)], 300)
    return LocalLM(tiny_llama(len(tokenizer), 0, width=32, layers=2), tokenizer)


def test_a_packed_tree_equals_separate_sequences(lm):
    trees = [Tree((5, 6, 7), (Segment((8, 9, 10), 2), Segment((11, 12), 1))), Tree((9, 8), (Segment((5, 7, 6, 1), 3),))]
    rows = pack(trees, 32)
    assert len(rows) == 1
    batch = collate(rows)
    with torch.no_grad():
        packed = lm.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]).logits[
            0
        ]
    at = 0
    for tree in trees:
        n = len(tree.prefix)
        inside = at + n
        for s in tree.segments:
            with torch.no_grad():
                alone = lm.model(input_ids=torch.tensor([[*tree.prefix, *s.ids]])).logits[0]
            m = len(s.ids)
            torch.testing.assert_close(packed[inside : inside + m], alone[n:], atol=1e-5, rtol=1e-4)
            assert batch["labels"][0, inside : inside + m].tolist() == [IGNORED] * (m - s.trained) + list(s.ids[m - s.trained :])
            inside += m
        at = inside


def test_weights_that_are_no_numbers_are_not_what_training_leaves(lm, tmp_path):
    trees = [Tree((5, 6, 7), (Segment((8, 9, 10), 2),))] * 8
    torn = copy.deepcopy(lm.model)
    torn.lm_head.register_full_backward_hook(lambda module, into, out: (into[0] * float("nan"),))
    with pytest.raises(TrainingError, match="learning_rate"):
        fit(torn, trees, FitConfig(epochs=4, rows=4, row_length=64), tmp_path / "short")
    torn = copy.deepcopy(lm.model)
    torn.lm_head.register_full_backward_hook(lambda module, into, out: (into[0] * float("nan"),))
    with pytest.raises(TrainingError, match=r"update 20 of \d+: \w+ is nan"):
        fit(torn, trees, FitConfig(epochs=30, rows=4, row_length=64), tmp_path / "long", checkpoint_every=20)
    assert not list((tmp_path / "long").glob("checkpoint-*")), "no weights of it reach a checkpoint"


def test_a_target_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="row_length"):
        pack([Tree((1,) * 30, (Segment((2,) * 10, 5),))], 32)


def test_generation_does_not_depend_on_the_batch(lm):
    prompts = [lm.encode(" the cat"), lm.encode(" dog ran to the mat on"), lm.encode(" the cat"), lm.encode(" carrot")]
    together = lm.generate(prompts, 6, 1.0, [keyed_rng("x", i) for i in range(4)])
    for i, prompt in enumerate(prompts):
        alone = lm.generate([prompt], 6, 1.0, [keyed_rng("x", i)])[0]
        assert alone.ids == together[i].ids
    assert all(len(g.ids) == len(g.logprobs) for g in together)


def test_no_text_encodes_to_a_special_token(lm):
    assert lm.eos not in lm.encode(" cat <eos> <pad>")
    assert lm.decode(lm.encode(" naïve \U0001f600 word")) == " naïve \U0001f600 word"


def test_whole_words_become_one_token_and_text_comes_back(tmp_path):
    tokenizer = train_tokenizer([" the cat sat on the mat"] * 40, 300)
    lm = LocalLM(tiny_llama(len(tokenizer), 0, width=32, layers=1), tokenizer)
    text = " the purple_potato sat , \\@why @why purple_potatoes"
    before = lm.encode(" the cat sat")
    assert add_whole_words(lm, [" purple_potato @why the"] * 60, 50) == ["@why", "purple_potato"]
    assert len(lm.encode(" purple_potato @why")) == 2
    assert lm.decode(lm.encode(text)) == text
    assert lm.encode(" \\@why")[-1] != lm.encode(" @why")[-1], "an escaped marker is another token"
    assert lm.encode(" the cat sat") == before
    lm.save(tmp_path)
    again = LocalLM.load(tmp_path)
    assert again.encode(text) == lm.encode(text)
    assert again.model.get_input_embeddings().weight.shape[0] == len(lm.tokenizer)


def test_lockstep_gathers_all_that_wait_and_sorts_by_key():
    sizes: list[tuple[str, list[object]]] = []

    def serve(name):
        def run(requests):
            sizes.append((name, list(requests)))
            return [r * 10 for r in requests]

        return run

    lockstep = Lockstep({"a": serve("a"), "b": serve("b")})

    async def episode(i):
        total = 0
        for turn in range(i):
            await asyncio.sleep(0.001 * (5 - i))
            total += await lockstep.call("a" if (i + turn) % 2 else "b", (i, turn), i)
        return total

    assert asyncio.run(lockstep.run([episode(i) for i in (3, 1, 4, 2)])) == [90, 10, 160, 40]
    first = next(s for s in sizes if s[0] == "a"), next(s for s in sizes if s[0] == "b")
    assert first[0][1] == [1, 3]
    assert first[1][1] == [2, 3, 4]  # b waits until nobody wants a


def test_lockstep_lets_the_later_function_gather_while_an_earlier_one_is_wanted():
    sizes: dict[str, list[int]] = {"policy": [], "costly": []}

    def serve(name):
        def run(requests):
            sizes[name].append(len(requests))
            return list(requests)

        return run

    lockstep = Lockstep({"policy": serve("policy"), "costly": serve("costly")})

    async def episode(i):
        for turn in range(i):  # i cheap turns before the first costly call
            await lockstep.call("policy", (i, turn), i)
        await lockstep.call("costly", (i,), i)

    asyncio.run(lockstep.run([episode(i) for i in (1, 2, 3, 4)]))
    assert sizes == {"policy": [4, 3, 2, 1], "costly": [4]}


def test_lockstep_goes_on_without_who_waits_elsewhere():
    sizes: list[int] = []

    def serve(requests):
        sizes.append(len(requests))
        return list(requests)

    lockstep = Lockstep({"policy": serve})

    async def away(back: asyncio.Event):
        await lockstep.call("policy", (0,), 0)
        await lockstep.apart(back.wait())
        await lockstep.call("policy", (0, 1), 0)

    async def here(i: int, back: asyncio.Event):
        for turn in range(3):
            await lockstep.call("policy", (i, turn), i)
        if i == 2:
            back.set()

    async def run():
        back = asyncio.Event()
        await asyncio.wait_for(lockstep.run([away(back), here(1, back), here(2, back)]), 5)

    asyncio.run(run())
    assert sizes == [3, 2, 2, 1]


def test_a_slow_environment_holds_nobody_up_and_one_that_never_answers_is_one_invalid_episode(monkeypatch):
    monkeypatch.setattr("dreamgym.rl.rollout.PATIENCE_S", 2.0)
    order: list[str] = []
    woken: list[asyncio.Event] = []

    class Room:
        """Three steps; that of ``slow`` waits until all others are done, that of ``dead`` for ever."""

        async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
            self.name, self.left = task.id, 3
            return "[room] mat: here", {}

        async def step(self, action: str) -> Step:
            if self.name == "dead":
                await asyncio.Event().wait()
            if self.name == "slow" and len(order) < 2:
                woken.append(asyncio.Event())
                await woken[0].wait()
            self.left -= 1
            done = self.left == 0
            return Step(f"[room] mat: {self.left}", float(done), done, False, {})

        async def close(self) -> None:
            if self.name.startswith("quick"):
                order.append(self.name)
                if len(order) == 2:
                    woken[0].set()

    class Says:
        def act(self, turns):
            return [Sample((1,), (2,), (0.0,), "go") for _ in turns]

    names = ("slow", "quick1", "dead", "quick2")
    seats = [Seat(Task(id=name, instruction="x", first_state=()), 0, 0) for name in names]
    played = rollouts(Says(), lambda seat, lockstep: Room(), seats, "real", "rooms")
    assert [(r.episode.valid, len(r.samples)) for r in played] == [(True, 3), (True, 3), (False, 0), (True, 3)]


def test_those_that_wait_for_a_place_do_not_wait_for_stragglers(monkeypatch):
    monkeypatch.setattr("dreamgym.rl.rollout.STRAGGLING_S", 2)
    here: set[str] = set()
    most, done = [0], list[str]()
    rest = asyncio.Event()

    class Room:
        """One step; that of ``slow`` waits until all others are done."""

        async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
            self.name = task.id
            here.add(self.name)
            most[0] = max(most[0], len(here))
            return "[room] mat: here", {}

        async def step(self, action: str) -> Step:
            if self.name == "slow":
                await rest.wait()
            return Step("[room] mat: 0", 1.0, True, False, {})

        async def close(self) -> None:
            here.discard(self.name)
            done.append(self.name)
            if len(done) == 5:
                rest.set()

    class Says:
        def act(self, turns):
            return [Sample((1,), (2,), (0.0,), "go") for _ in turns]

    names = ("quick1", "slow", "quick2", "quick3", "quick4", "quick5")
    seats = [Seat(Task(id=name, instruction="x", first_state=()), 0, 0) for name in names]
    played = rollouts(Says(), lambda seat, lockstep: Room(), seats, "real", "rooms", live=2)
    assert [r.episode.task.id for r in played] == list(names)
    assert all(r.episode.valid for r in played)
    assert (most[0], done[-1]) == (2, "slow")


def test_an_environment_that_never_closes_ends_nobody_elses_episode_and_keeps_its_own(monkeypatch):
    monkeypatch.setattr("dreamgym.rl.rollout.PATIENCE_S", 1.0)

    class Room:
        async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
            return "[room] mat: here", {}

        async def step(self, action: str) -> Step:
            return Step("[room] mat: 0", 1.0, True, False, {})

        async def close(self) -> None:
            await asyncio.Event().wait()

    class Says:
        def act(self, turns):
            return [Sample((1,), (2,), (0.0,), "go") for _ in turns]

    [played] = rollouts(Says(), lambda seat, lockstep: Room(), [Seat(Task(id="a", instruction="x", first_state=()), 0, 0)], "real", "rooms")
    assert (played.episode.valid, played.episode.stop) == (True, StopReason.WON)


def test_what_fails_elsewhere_is_nobodys_own_failure():
    lockstep = Lockstep({})

    async def episode():
        future = asyncio.get_running_loop().create_future()
        future.set_exception(RuntimeError("no power"))
        await lockstep.apart(future)

    with pytest.raises(BatchError, match="RuntimeError: no power"):
        asyncio.run(lockstep.run([episode()]))


def without_power(requests):
    raise RuntimeError("no power")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without_power, "a: RuntimeError: no power"),
        (lambda requests: requests[:-1], "a: RuntimeError: batch function 'a' gave 2 answers to 3 requests"),
    ],
)
def test_a_failing_batch_reaches_every_waiting_episode(function, message):
    lockstep = Lockstep({"a": function})

    async def episode(i):
        try:
            await lockstep.call("a", (i,), i)
        except BatchError as e:
            return str(e)

    assert asyncio.run(lockstep.run([episode(i) for i in range(3)])) == [message] * 3


class OneLetter:
    """A game of one step, won by an action that holds the instruction's letter."""

    async def reset(self, task: Task, seed: int) -> tuple[str, Info]:
        self.letter = task.instruction
        return "[room] mat: here", {"instruction": task.instruction}

    async def step(self, action: str) -> Step:
        return Step("[room] mat: here", float(self.letter in action), True, False, {})

    async def close(self) -> None:
        pass


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
def test_pass_at_is_the_share_of_choices_with_a_success(games, k):
    enough = [g for g in games if len(g) >= k]
    shares = [sum(any(c) for c in itertools.combinations(g, k)) / math.comb(len(g), k) for g in enough]
    found = pass_at(k, games)
    assert found == pytest.approx(sum(shares) / len(shares)) if shares else math.isnan(found)


def test_paired_interval():
    games = [str(i) for i in range(100)]
    first = [{g: float(i % 3 != 0) for i, g in enumerate(games)} for _ in range(3)]
    second = [{g: float(i % 3 == 0) for i, g in enumerate(games)} for _ in range(3)]
    interval = paired_interval(first, second, ("a", "b"))
    assert interval["low"] < interval["mean"] < interval["high"]
    assert interval["low"] > 0
    same = paired_interval(first, first, ("a", "a"))
    assert same["low"] == same["high"] == 0
    with pytest.raises(ValueError, match="same seeds"):
        paired_interval(first, second[:1], ("a", "b"))
