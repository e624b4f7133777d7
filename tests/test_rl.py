"""Laws of the objectives, the packing, the lockstep, the sampler and the buffer."""

import asyncio
import copy
import random
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.core.env import Info, Step
from dreamgym.core.errors import BatchError
from dreamgym.core.lockstep import Lockstep
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.curriculum.sampler import VarianceSampler, group_value
from dreamgym.pipeline.stats import paired_interval

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.packing import IGNORED, Segment, Tree, collate, pack  # noqa: E402
from dreamgym.lm.tiny import tiny_llama, train_tokenizer  # noqa: E402
from dreamgym.lm.words import add_whole_words  # noqa: E402
from dreamgym.rl.grpo import GRPOConfig, GRPOTrainer, has_effect, policy_trees, step_credit  # noqa: E402
from dreamgym.rl.objectives import clipped_loss, group_advantages, step_advantages  # noqa: E402
from dreamgym.rl.policy import Policy, Sample  # noqa: E402
from dreamgym.rl.rollout import Rollout, rollouts  # noqa: E402

REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=12)


@given(REWARDS)
def test_advantages_are_centred_scaled_and_blind_to_invalid_members(rewards):
    advantages = group_advantages(rewards)
    assert [a is None for a in advantages] == [r is None for r in rewards]
    valid = [a for a in advantages if a is not None]
    assert group_advantages([r for r in rewards if r is not None]) == valid
    if valid and any(valid):
        assert fmean(valid) == pytest.approx(0, abs=1e-6)
        assert pstdev(valid) == pytest.approx(1, abs=1e-6)


@given(st.floats(-3, 3), st.lists(st.booleans(), max_size=8), st.floats(0, 1))
def test_a_step_without_effect_has_no_part_in_a_win_and_all_of_a_failure(advantage, effective, penalty):
    credit = step_advantages(advantage, effective, penalty, 1.0)
    assert [c for c, e in zip(credit, effective, strict=True) if e] == [advantage] * sum(effective)
    idle = [c for c, e in zip(credit, effective, strict=True) if not e]
    assert all(c == (-penalty if advantage > 0 else advantage - penalty) for c in idle)
    assert step_advantages(advantage, effective, None, 1.0) == [advantage] * len(effective), "plain GRPO"
    assert step_advantages(advantage, effective, penalty, 0.1) == [c if c > 0 else c * 0.1 for c in credit]


@pytest.mark.parametrize(("advantage", "penalty", "taught"), [
    (1.0, 0.3, {(1,): 1.0, (2,): -0.3, (3,): 1.0}),
    (-1.0, 0.3, {(1,): -1.0, (2,): -1.3, (3,): -1.0}),
    (0.0, 0.3, {(2,): -0.3}),  # a group without variance
    (0.0, None, {}),
    (None, 0.3, {}),  # an invalid episode
])
def test_what_a_repeated_command_is_taught_in_an_episode(advantage, penalty, taught):
    there, here = ("[room] key: table",), ("[room] key: hands",)
    steps = (
        Transition(state=there, action="take key", removed=there, added=here, reward=0.0, outcome="go"),
        Transition(state=here, action="take key", reward=0.0, outcome="go"),
        Transition(state=here, action="open door", reward=1.0, outcome="won"),
    )
    assert [has_effect(t) for t in steps] == [True, False, True]
    episode = Episode(id="e", env="x", task=Task(id="t", instruction="", first_state=there), source="dream", behaviour="policy",
                      transitions=steps, stop=StopReason.WON)  # fmt: skip
    samples = tuple(Sample((7, 8), (n,), (-1.0,), t.action) for n, t in enumerate(steps, 1))
    rollout, config = Rollout(episode, samples), GRPOConfig(no_effect_penalty=penalty, negative=1.0)
    trees = policy_trees([(rollout, step_credit(rollout, advantage, config, 0.0))])
    segments = [s for tree in trees for s in tree.segments]
    assert {s.ids[-1:]: pytest.approx(s.advantage) for s in segments} == taught
    assert [tree.prefix for tree in trees] == [(7,)] * bool(taught)


def test_the_value_of_a_group_is_its_variance():
    assert group_value([1.0, 0.0, None]) == 0.25
    assert group_value([1.0, None]) is None


def test_clipped_loss_equals_its_formula_and_its_gradient_stops_outside_the_clip():
    old = torch.zeros(4)
    logp = torch.tensor([0.0, 0.5, -0.5, 0.5], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, clipped = clipped_loss(logp, old, advantage, 0.2)
    assert loss.item() == pytest.approx(-(1 + 1.2 - 0.8 - float(np.exp(0.5))), abs=1e-5)
    assert int(clipped) == 2
    loss.backward()
    assert logp.grad is not None
    assert logp.grad[1] == 0
    assert logp.grad[2] == 0
    assert logp.grad[3] != 0


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


def grpo_on_letters(lm: LocalLM, iterations: int) -> GRPOTrainer:
    return GRPOTrainer(
        lm,
        GRPOConfig(iterations=iterations, group=16, learning_rate=2e-2, warmup=2, row_length=128),
        lambda seats: rollouts(Policy(lm, 1.0), lambda seat, lockstep: OneLetter(), seats, "real", "letters"),
    )


def test_grpo_learns_and_resumes_exactly(lm, tmp_path):
    tasks = [Task(id=f"t/{letter}", instruction=letter, first_state=()) for letter in "cdm"]
    start = copy.deepcopy(lm)
    trainer = grpo_on_letters(start, 16)
    steps = []
    for n in range(16):
        if n == 12:
            trainer.save(tmp_path)
        trainer.iterate(tasks)
        steps.append(trainer.optimizer.param_groups[0]["lr"])
    rewards = [m["reward"] for m in trainer.progress.metrics]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.3
    assert steps == [pytest.approx(2e-2 * (1 - n / 16) * (0.5 if n == 0 else 1)) for n in range(16)], "warms up, then falls linearly"

    again = grpo_on_letters(LocalLM.load(tmp_path), 16)
    again.resume(tmp_path)
    for _ in range(4):
        again.iterate(tasks)
    assert [m["reward"] for m in again.progress.metrics] == rewards


def test_the_sampler_prefers_half_solved_tasks_and_resumes_exactly():
    tasks = [f"t{i}" for i in range(40)]
    sampler = VarianceSampler(tasks, 0)
    for name in sampler.next(40):
        sampler.observe(name, [1.0, 0.0] if name in ("t1", "t2") else [0.0, 0.0])
    sampler.observe("t3", [None, None])
    counts = dict.fromkeys(tasks, 0)
    for _ in range(50):
        for name in sampler.next(8):
            counts[name] += 1
    assert min(counts.values()) > 0, "no task starves"
    assert counts["t1"] + counts["t2"] > 4 * sum(counts.values()) / len(tasks)
    twin = VarianceSampler(tasks, 0)
    twin.load_state_dict(sampler.state_dict())
    assert [sampler.next(8) for _ in range(3)] == [twin.next(8) for _ in range(3)]
    with pytest.raises(ValueError, match="other tasks"):
        twin.load_state_dict({"draws": 0, "value": {}, "visits": {}})


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
