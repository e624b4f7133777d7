"""Laws of advantages and credit, and what verl computes for the same rewards (tests/golden/verl.json; make oracles)."""

import json
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.rl.advantages import (
    anchor_advantages,
    gae,
    group_advantages,
    leave_one_out_advantages,
    normalised,
    rewards_to_go,
    shaped,
    shared_advantages,
    turn_advantages,
    whitened,
)
from dreamgym.rl.config import RLConfig
from dreamgym.rl.credit import critic_credit, has_effect, step_credit

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.rl.policy import Sample  # noqa: E402
from dreamgym.rl.rollout import Rollout  # noqa: E402
from dreamgym.rl.trainer import policy_trees  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "golden" / "verl.json").read_text())["cases"]
REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=12)
PLAIN = RLConfig(no_effect_penalty=None, negative=1.0)
HERE, THERE, DOOR = ("[room] key: hands",), ("[room] key: table",), ("[room] door: open",)


@given(REWARDS)
def test_advantages_are_centred_scaled_and_blind_to_invalid_members(rewards):
    advantages = group_advantages(rewards)
    assert [a is None for a in advantages] == [r is None for r in rewards]
    valid = [a for a in advantages if a is not None]
    assert group_advantages([r for r in rewards if r is not None]) == valid
    if valid and any(valid):
        assert fmean(valid) == pytest.approx(0, abs=1e-6)
        assert pstdev(valid) == pytest.approx(1, abs=1e-6)
    alone = leave_one_out_advantages(rewards)
    assert [a is None for a in alone] == [r is None for r in rewards]
    n = len(valid)
    unscaled = [a for a in group_advantages(rewards, "none") if a is not None]
    if any(unscaled):
        assert [a for a in alone if a is not None] == pytest.approx([a * n / (n - 1) for a in unscaled], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN)
def test_verl_computes_the_same_advantages(case):
    given_, wanted = case["inputs"], case["outputs"]
    groups = [given_["outcome"][i : i + 4] for i in (0, 4)]
    varied = [i for i, g in enumerate(groups) if len(set(g)) > 1]
    assert varied, "a golden case without a group that varies shows nothing"
    for i in varied:  # without variance verl divides by nothing, where ours are 0
        assert group_advantages(groups[i], "sample") == pytest.approx(wanted["group_sample"][4 * i : 4 * i + 4])
    assert [a for g in groups for a in group_advantages(g, "none")] == pytest.approx(wanted["group_none"])
    assert [a for g in groups for a in leave_one_out_advantages(g)] == pytest.approx(wanted["leave_one_out"])
    lengths = [int(sum(row)) for row in given_["mask"]]
    rows = [gae(r[:n], v[:n], 0.9, 0.8) for r, v, n in zip(given_["rewards"], given_["values"], lengths, strict=True)]
    for (_, returns), row, n in zip(rows, wanted["returns"], lengths, strict=True):
        assert returns == pytest.approx(row[:n], abs=1e-9)
    flat = whitened([a for advantages, _ in rows for a in advantages])
    assert flat == pytest.approx([a for row, n in zip(wanted["gae"], lengths, strict=True) for a in row[:n]], abs=1e-6)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=8), st.floats(0.1, 1))
def test_gae_with_lambda_one_is_the_return_less_the_value_and_with_zero_one_step(pairs, gamma):
    rewards, values = [r for r, _ in pairs], [v for _, v in pairs]
    advantages, returns = gae(rewards, values, gamma, 1.0)
    assert returns == pytest.approx(rewards_to_go(rewards, gamma), abs=1e-9)
    assert advantages == pytest.approx([g - v for g, v in zip(returns, values, strict=True)], abs=1e-9)
    after = [*values[1:], 0.0]
    assert gae(rewards, values, gamma, 0.0)[0] == pytest.approx([r + gamma * n - v for r, v, n in zip(rewards, values, after, strict=True)])


def test_actions_taken_in_an_equal_state_are_compared():
    among = anchor_advantages([["s0", "s1", "s0"], ["s0", "s2"]], [[1.0, 1.0, 1.0], [0.0, 0.0]], "none")
    assert among[0] == pytest.approx([1 / 3, 0, 1 / 3])
    assert among[1] == pytest.approx([-2 / 3, 0])
    assert anchor_advantages([["a"], ["b"]], [[1.0], [0.0]]) == [[0.0], [0.0]], "nothing shared: as GRPO"


def test_a_step_that_wins_and_failures_share_decides_nothing():
    edges = [[("s0", "go"), ("s1", "cook")], [("s0", "go"), ("s1", "eat")]]
    assert shared_advantages(edges, [1.0, -1.0]) == [[0.0, 1.0], [0.0, -1.0]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(-2, 2), st.floats(0.1, 1))
def test_turns_keep_the_mean_of_the_episode(rewards, advantage, gamma):
    assert fmean(turn_advantages(rewards, advantage, gamma)) == pytest.approx(advantage, abs=1e-6)
    assert turn_advantages([0.0, 0.0], advantage, gamma) == [advantage] * 2


@given(st.floats(-3, 3), st.lists(st.booleans(), max_size=8), st.floats(0, 1))
def test_a_step_without_effect_has_no_part_in_a_win_and_all_of_a_failure(advantage, effective, penalty):
    whole = [advantage] * len(effective)
    credit = shaped(whole, effective, penalty, 1.0)
    assert [c for c, e in zip(credit, effective, strict=True) if e] == [advantage] * sum(effective)
    idle = [c for c, e in zip(credit, effective, strict=True) if not e]
    assert all(c == (-penalty if advantage > 0 else advantage - penalty) for c in idle)
    assert shaped(whole, effective, None, 1.0) == whole, "as published"
    assert shaped(whole, effective, penalty, 0.1) == [c if c > 0 else c * 0.1 for c in credit]


def a_rollout(member, stop, steps, malformed=(), task="t"):
    """``steps``: (state, action, state after, reward)."""
    last = len(steps) - 1
    transitions = tuple(
        Transition(state=s, action=a, removed=() if s == n else s, added=() if s == n else n, reward=r,
                   outcome=stop.value if i == last and stop in (StopReason.WON, StopReason.LOST) else "go")
        for i, (s, a, n, r) in enumerate(steps)
    )  # fmt: skip
    episode = Episode(id=f"{task}{member}", env="x", task=Task(id=task, instruction="", first_state=THERE), source="dream",
                      behaviour="policy", member=member, transitions=transitions, stop=stop)  # fmt: skip
    return Rollout(episode, tuple(Sample((7, 8), (n,), (-1.0,), t.action, n - 1 not in malformed) for n, t in enumerate(transitions, 1)))


WON = ((THERE, "take key", HERE, 0.0), (HERE, "take key", HERE, 0.0), (HERE, "open door", DOOR, 1.0))
FAILED = ((THERE, "take key", HERE, 0.0), (HERE, "wait", HERE, 0.0), (HERE, "wait", HERE, 0.0))


@pytest.mark.parametrize(("penalty", "won", "failed"), [(0.3, [1.0, -0.3, 1.0], [-1.0, -1.3, -1.3]), (None, [1.0] * 3, [-1.0] * 3)])
def test_what_an_iteration_teaches(penalty, won, failed):
    stops = (StopReason.WON, WON), (StopReason.MAX_STEPS, FAILED), (StopReason.INVALID_REPLY, WON[:1])
    rollouts = [a_rollout(i, stop, steps) for i, (stop, steps) in enumerate(stops)]
    assert [has_effect(t) for t in rollouts[0].episode.transitions] == [True, False, True]
    credit = step_credit(rollouts, RLConfig(no_effect_penalty=penalty, negative=1.0))
    assert credit == [pytest.approx(won), pytest.approx(failed), []]
    trees = policy_trees(list(zip(rollouts, credit, strict=True)))
    assert [s.advantage for tree in trees for s in tree.segments] == pytest.approx(won + failed)
    assert {tree.prefix for tree in trees} == {(7,)}
    idle = [a_rollout(0, StopReason.MAX_STEPS, FAILED), a_rollout(1, StopReason.MAX_STEPS, FAILED)]
    of_idle = -penalty if penalty else 0.0
    assert step_credit(idle, RLConfig(no_effect_penalty=penalty, negative=1.0)) == [[0.0, of_idle, of_idle]] * 2


def test_advantages_that_cancel_teach_nothing():
    took = [a_rollout(0, StopReason.WON, WON), *(a_rollout(n, StopReason.MAX_STEPS, FAILED) for n in (1, 2, 3))]
    credit = step_credit(took, RLConfig(credit="shared", no_effect_penalty=None, negative=1.0))
    shared = [steps[0] for steps in credit]
    assert 0 < max(map(abs, shared)) < 1e-15, "the first step is everybody's, and its mean a rounding error"
    trained = [s for tree in policy_trees(list(zip(took, credit, strict=True))) for s in tree.segments]
    assert min(abs(s.advantage) for s in trained) > 0.1


def test_a_malformed_reply_costs_its_own_step_the_penalty_in_units_of_the_group():
    costly = PLAIN.model_copy(update={"invalid_action_penalty": 0.1})
    pair = [a_rollout(0, StopReason.WON, WON, malformed=(1,)), a_rollout(1, StopReason.MAX_STEPS, FAILED)]
    assert step_credit(pair, costly)[0] == pytest.approx([1.0, 0.8, 1.0]), "the group's deviation is 0.5"
    alike = [a_rollout(0, StopReason.WON, WON, malformed=(1,)), a_rollout(1, StopReason.WON, WON)]
    assert step_credit(alike, costly) == [pytest.approx([0.0, -0.1, 0.0]), [0.0] * 3]
    unscaled = costly.model_copy(update={"advantage": "leave_one_out"})
    assert step_credit(pair, unscaled)[0] == pytest.approx([1.0, 0.9, 1.0])


def test_credit_among_equal_states_tells_the_step_that_decided():
    pair = [a_rollout(0, StopReason.WON, WON), a_rollout(1, StopReason.MAX_STEPS, FAILED)]
    anchors = step_credit(pair, PLAIN.model_copy(update={"credit": "anchors", "gamma": 0.95}))
    assert anchors[0][0] > 1, "the first state was met by both"
    assert anchors[1][0] < -1
    assert step_credit(pair, PLAIN.model_copy(update={"credit": "shared"})) == [pytest.approx([0, 1, 1]), pytest.approx([0, -1, -1])]
    turns = step_credit(pair, PLAIN.model_copy(update={"credit": "turns", "gamma": 0.5}))
    assert turns[0] == pytest.approx([3 / 7, 6 / 7, 12 / 7])
    assert turns[1] == [-1.0] * 3


def test_a_critic_takes_the_place_of_the_group():
    stops = (StopReason.WON, WON), (StopReason.INVALID_REPLY, WON[:1]), (StopReason.MAX_STEPS, FAILED)
    rollouts = [a_rollout(i, stop, steps) for i, (stop, steps) in enumerate(stops)]
    config = PLAIN.model_copy(update={"advantage": "gae"})
    credit, targets = critic_credit(rollouts, [[0.5] * 3, [0.5], [0.5] * 3], config)
    assert targets == [[1.0] * 3, [], [0.0] * 3]
    flat = [a for steps in credit for a in steps]
    assert [len(steps) for steps in credit] == [3, 0, 3]
    assert np.mean(flat) == pytest.approx(0)
    assert np.std(flat, ddof=1) == pytest.approx(1)
    assert min(credit[0]) > 0 > max(credit[2])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"advantage": "gae", "credit": "anchors"}, "with advantage: gae each step has its own"),
        ({"group": 1}, "or advantage: gae"),
        ({"gamma": 0.8}, "gamma: has no effect"),
        ({"advantage": "leave_one_out", "std": "none"}, "std: has no effect"),
        ({"critic_passes": 1, "value_clip": 0.1}, "critic_passes, value_clip: has no effect"),
        ({"kl_estimator": "k2"}, "kl_estimator"),
        ({"horizon": (5,), "horizon_every": 3}, "horizon_every"),
    ],
)
def test_a_setting_that_could_not_act_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        RLConfig(**keys)
    assert RLConfig(advantage="gae", group=1).group == 1
    whole = RLConfig().model_dump()
    assert RLConfig(**whole) == RLConfig(), "a saved configuration names every key"


@given(st.lists(st.tuples(st.floats(-3, 3), st.sampled_from("ab"), st.integers(1, 5)), min_size=1, max_size=20))
def test_normalised_by_kind_each_kinds_tokens_have_mean_0_and_deviation_1(steps):
    advantages, kinds, tokens = (list(x) for x in zip(*steps, strict=True))
    found = normalised(advantages, kinds, tokens)
    for kind in set(kinds):
        own = [a for a, k, n in zip(found, kinds, tokens, strict=True) if k == kind for _ in range(n)]
        assert fmean(own) == pytest.approx(0, abs=1e-6)
        if any(own):
            assert pstdev(own) == pytest.approx(1, abs=1e-6)
    only = [i for i, k in enumerate(kinds) if k == "a"]
    alone = normalised([advantages[i] for i in only], ["a"] * len(only), [tokens[i] for i in only])
    assert alone == pytest.approx([found[i] for i in only]), "no kind knows of another"


def test_a_kind_that_is_always_won_does_not_outweigh_a_hard_one():
    def of_kind(kind, wins):
        stops = [StopReason.WON] * wins + [StopReason.LOST] * (4 - wins)
        rolled = [a_rollout(i, stop, WON if stop is StopReason.WON else FAILED, task=kind) for i, stop in enumerate(stops)]
        return [with_kind(r, kind) for r in rolled]

    rollouts = [*of_kind("easy", 3), *of_kind("hard", 1)]
    values = [[0.0] * 3 for _ in rollouts]
    by_kind = RLConfig(advantage="gae", normalise="kind", no_effect_penalty=None, negative=1.0)
    credit, _ = critic_credit(rollouts, values, by_kind)
    assert credit[0][0] == pytest.approx((1 - 0.75) / (0.75 * 0.25) ** 0.5), "a win among wins"
    assert credit[4][0] == pytest.approx((1 - 0.25) / (0.25 * 0.75) ** 0.5), "a rare win weighs three times as much"
    invalid = with_kind(a_rollout(9, StopReason.INVALID_REPLY, WON[:1], task="hard"), "hard")
    again, _ = critic_credit([*rollouts, invalid], [*values, [0.0]], by_kind)
    assert again == [*credit, []]
    grouped = step_credit([*rollouts, invalid], RLConfig(std="none", normalise="kind", no_effect_penalty=None, negative=1.0))
    assert grouped == [pytest.approx(c) for c in credit] + [[]], "r - mean of the group, by the deviation over the kind"


def with_kind(rollout, kind):
    episode = rollout.episode.model_copy(update={"task": rollout.episode.task.model_copy(update={"difficulty": kind})})
    return Rollout(episode, rollout.samples)
