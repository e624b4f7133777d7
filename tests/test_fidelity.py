"""Measures of fidelity: hand-made cases, laws, and an oracle where a library computes the same."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_core import an_episode
from vault_model import VaultModel

pytest.importorskip("torch")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from dreamgym.core.grammar import Reply
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import Change, entity
from dreamgym.core.types import StopReason, Task, Transition
from dreamgym.envs.gym import GymAdapter
from dreamgym.experience.fidelity import (
    Row,
    auroc,
    by_depth,
    calibration,
    could_end,
    done_accuracy,
    facts_over_episodes,
    invalid_actions,
    ranks,
    reward_error,
    spearman,
    spurious,
    theorem_1,
    total_variation,
)
from dreamgym.experience.model import Prediction
from dreamgym.experience.prompt import Request
from dreamgym.pipeline.config import Evaluation, RunConfig
from dreamgym.pipeline.fidelity import fidelity_run
from dreamgym.pipeline.noise import share_on_logged_tasks
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.policy import Scripted
from examples.own_environment import Vault, expert, panels

LIME, EGG = "[held] lime: fresh", "[held] egg: raw"
STATE = (EGG, LIME)


def said(outcome="go", removed=(), added=()):
    return Prediction(Reply("r", Change(tuple(removed), tuple(added)), outcome), None, "")


def real(outcome="go", removed=(), added=()):
    return Transition(state=STATE, action="eat lime", removed=removed, added=added, reward=float(outcome == "won"), outcome=outcome)


INVALID = Prediction(None, StopReason.INVALID_CHANGE, "")


def row(prediction, *truth, drawn=()):
    return Row(Request("eat", (), (), STATE, truth[0].action, "e", "t", (0,)), truth, prediction, tuple(drawn))


def test_whether_a_command_does_nothing_is_judged_both_ways():
    idle, moved = real(), real(added=("[table] lime: fresh",))
    told = invalid_actions([row(said(), idle), row(said(), moved), row(said("lost"), idle), row(INVALID, idle), row(said("won"), moved)])
    assert told == {"precision": 0.5, "recall": pytest.approx(1 / 3), "n": 3}
    assert invalid_actions([row(said("won"), real("won"))]) == {"precision": None, "recall": None, "n": 0}


def test_errors_of_reward_and_end():
    rows = [row(said("won"), real("won")), row(said("won"), real("go")), row(said("go"), real("lost")), row(INVALID, real("go"))]
    assert done_accuracy(rows) == 0.25
    assert reward_error(rows) == {"mean": 0.5, "max": 1.0}
    assert reward_error([row(said("won"), real("won"), real("go"))]) == {"mean": 0.5, "max": 0.5}


def test_total_variation_is_zero_for_the_truth_and_one_for_another_state():
    truth = real(removed=(LIME,))
    half = row(said(removed=(LIME,)), truth, drawn=[said(removed=(LIME,)), said()])
    assert total_variation([half]) == {"mean": 0.0, "max": 0.0, "sampled": 0.5}
    assert total_variation([row(said(), truth)])["mean"] == 1.0
    assert total_variation([row(INVALID, truth)])["mean"] == 1.0
    assert total_variation([row(said(), real(), truth)])["mean"] == 0.5, "a real environment that answers either way"


def test_calibration_counts_how_often_a_confidence_comes_true():
    sure = [row(said("won"), real("won"), drawn=[said("won")] * 4)] * 3
    half = [row(said("won"), real("won" if i % 2 else "go"), drawn=[said("won"), said()]) for i in range(4)]
    assert calibration(sure + half)["ece"] == 0.0
    wrong = [row(said("won"), real("go"), drawn=[said("won")] * 4)]
    assert calibration(wrong)["ece"] == 1.0
    assert calibration([])["ece"] is None


def test_only_steps_that_could_end_are_asked():
    logs = [an_episode()]  # "eat" won there
    quiet = Row(Request("eat", (), (), STATE, "look", "e", "t", (0,)), (real(),), said(), (said(),))
    assert could_end([row(said(), real()), quiet], logs) == [row(said(), real())]
    loud = Row(quiet.request, quiet.real, quiet.said, (said("won"),))
    assert could_end([loud], logs) == [loud]


def test_changes_without_a_cause_are_counted():
    found = spurious([row(said(removed=(EGG, LIME)), real(removed=(LIME,))), row(said(), real(removed=(LIME,))), row(INVALID, real())])
    assert found == pytest.approx({"changed_without_cause": 1000 / 3, "left_unchanged": 1000 / 3, "contradictions": 1000 / 3})


def test_agreement_by_depth_drops_where_the_dream_leaves():
    e = an_episode()
    gone = e.model_copy(update={"transitions": e.transitions[:1], "source": "dream"})
    assert by_depth([e, e], [e, gone]) == [{"depth": 1, "n": 2, "agree": 1.0}, {"depth": 2, "n": 2, "agree": 0.5}]


def test_an_invalid_step_agrees_with_nothing():
    e = an_episode()
    quiet = e.transitions[0].model_copy(update={"removed": (), "added": ()})
    dreamt = e.model_copy(update={"transitions": (quiet.model_copy(update={"reward": None}),), "stop": StopReason.INVALID_REPLY})
    assert by_depth([e.model_copy(update={"transitions": (quiet,)})], [dreamt])[0]["agree"] == 0.0


def test_facts_that_change_without_a_cause_are_counted_over_the_episode():
    e = an_episode()
    assert facts_over_episodes([e], [e]) == {"episodes": 1, "without_any": 1.0, "changed_without_cause": 0.0}
    first = e.transitions[0]
    quiet = first.model_copy(update={"action": "look", "removed": (), "added": ()})
    odd = quiet.model_copy(update={"removed": (EGG,)})
    named = odd.model_copy(update={"action": f"eat {EGG.partition('] ')[2].partition(':')[0]}"})
    invalid = odd.model_copy(update={"reward": None})
    really = e.model_copy(update={"transitions": (quiet, quiet, quiet)})
    asked = e.model_copy(update={"transitions": (named.model_copy(update={"removed": ()}), quiet, quiet)})
    dreamed = e.model_copy(update={"transitions": (quiet, odd, invalid)})
    found = facts_over_episodes([really, asked], [dreamed, asked.model_copy(update={"transitions": (named, quiet, quiet)})])
    assert found == {"episodes": 2, "without_any": 0.5, "changed_without_cause": 1000 / 5}
    assert facts_over_episodes([], [])["without_any"] is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_ranks_keep_order_and_sum(values):
    r = ranks(values)
    assert r.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)
    assert all((a < b) == (x < y) for a, x in zip(values, r, strict=True) for b, y in zip(values, r, strict=True))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_ordered_pairs(points):
    scores, positive = [s for s, _ in points], [p for _, p in points]
    up, down = [s for s, p in points if p], [s for s, p in points if not p]
    if not up or not down:
        assert auroc(scores, positive) is None
        return
    share = sum((a > b) + (a == b) / 2 for a in up for b in down) / (len(up) * len(down))
    assert auroc(scores, positive) == pytest.approx(share)


def test_spearman():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)  # scipy.stats.spearmanr
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_theorem_1_says_where_it_is_vacuous():
    assert "Vacuous" in theorem_1(0.0, 0.0, 1.0, 0.0).says
    exact = theorem_1(0.0, 0.0, 0.9, 0.0)
    assert (exact.model_gap, exact.penalty) == (0.0, 0.0)
    loose = theorem_1(0.01, 0.002, 0.9, 0.0)
    assert loose.model_gap == pytest.approx(0.01 * 10 + 2 * 0.9 * 0.002 * 100)
    assert "an improvement in the dream of more than 0.92 is one for real" in loose.says
    assert "Vacuous: it subtracts 1.28, more than any return (1)" in theorem_1(0.01, 0.003, 0.9, 0.0).says
    assert "is one for real (returns are at most 10)" in theorem_1(0.01, 0.003, 0.9, 0.0, most=10.0).says
    assert "Vacuous" in theorem_1(0.5, 0.5, 0.99, 0.1).says
    assert math.isfinite(theorem_1(0.1, 0.1, 0.99, 0.1).penalty)
    with pytest.raises(ValueError, match="gamma"):
        theorem_1(0.1, 0.1, 1.5, 0.1)


def careless(instruction, state, rng):
    """Opens what is closed, takes what lies there, and tries the first key."""
    held = [s for s in state if s.startswith("[hand]")]
    lying = [s for s in state if "_key" in s]
    closed = [s for s in state if s.endswith("closed")]
    return f"unlock door with {entity(held[0])}" if held else f"take {entity(lying[0])}" if lying else f"open {entity(closed[0])}"


vaults = GymAdapter("vault", Vault, panels, "unlock the door", 10, {"careless": careless, "expert": expert})


def long_audit(model, judge=None):
    config = RunConfig(env="examples.own_environment:adapter", evaluation=Evaluation(audit_games=12))
    return fidelity_run(config, vaults, model, model.draw, [], {}, [], judge=judge)


def test_the_long_audit_of_a_model_that_knows_the_rules_finds_nothing():
    found = long_audit(VaultModel())
    assert found["n_episodes"] == 2 * 2 * 12
    assert (found["optimism"], found["next_state_all"], found["done_accuracy"]) == (0.0, 1.0, 1.0)
    assert found["epsilon_r"] == {"mean": 0.0, "max": 0.0}
    assert found["epsilon_p"] == {"mean": 0.0, "max": 0.0, "sampled": 0.0}
    assert found["calibration"]["ece"] == 0.0
    assert found["optimism_dream_trained"] is None, "no policy was trained in the dream"
    assert found["asked_again"]["same"] > 0
    assert found["asked_again"]["other"] == found["asked_again"]["unusable"] == 0
    assert all(row["agree"] == 1.0 for row in found["by_depth"])
    assert found["facts_over_episodes"] == {"episodes": 48, "without_any": 1.0, "changed_without_cause": 0.0}
    assert found["real_steps_audit"] > sum(row["n"] for row in found["by_depth"])


@pytest.mark.parametrize(("noisy", "low", "high"), [(False, 0.0, 0.0), (True, 0.6, 1.4)])
def test_the_simulators_own_dice_are_told_from_the_policys(noisy, low, high):
    class Dice(VaultModel):
        """Grants success by a throw of its own, whatever is done."""

        def _one(self, r):
            won = keyed_rng("dice", *r.key).random() < 0.5
            return Prediction(Reply("", Change((), ()), "won" if won else "lost"), None, "") if noisy else super()._one(r)

    here = ("[hand] red_key: metal", "[room] door: red locked")
    tasks = {name: Task(id=name, instruction="unlock the red door", first_state=here) for name in (f"vault/{n}" for n in range(20))}
    policy = Scripted(lambda instruction, state, rng: ("unlock door with red_key", "look")[int(rng.integers(2))])
    share = share_on_logged_tasks(Dice(), ReplayBuffer().snapshot(), 3, policy, tasks, 0)
    assert low <= share <= high


def test_a_judge_scores_the_dreamed_steps_where_there_is_one():
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from benchmarks.loopback import LoopbackServer
    from dreamgym.endpoint.client import Endpoint
    from dreamgym.endpoint.config import EndpointConfig

    text = '{"rubric_scores": {"causal_consistency": 2, "diversity": 1, "informativeness": 2, "hallucination": 2}}'
    with LoopbackServer(lambda body: text) as server:
        found = long_audit(VaultModel(), Endpoint(EndpointConfig(base_url=server.url, model="m")))
    assert found["judge"]["scored"] == 100
    assert found["judge"]["means"]["diversity"] == 1.0


def test_the_long_audit_names_what_an_optimist_gets_wrong():
    found = long_audit(VaultModel("key"))
    assert found["policies"]["careless"]["dream"] > found["policies"]["careless"]["real"]
    assert found["optimism"] > 0
    assert found["epsilon_r"]["max"] == 1.0
    assert found["calibration"]["ece"] > 0
    assert found["by_depth"][-1]["agree"] < 1 or found["next_state_all"] < 1
