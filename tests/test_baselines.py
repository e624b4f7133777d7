"""Baselines without rewards: what they learn from is what really happened, and it is counted."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from command import dreamgym  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_rl_run import logged  # noqa: E402, F401

from dreamgym.core.env import RealSteps  # noqa: E402
from dreamgym.core.errors import DataError  # noqa: E402
from dreamgym.core.files import read_episodes  # noqa: E402
from dreamgym.core.grammar import escape, parse_reply  # noqa: E402
from dreamgym.core.types import StopReason, Transition  # noqa: E402
from dreamgym.lm.fit import FitConfig  # noqa: E402
from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.packing import pack  # noqa: E402
from dreamgym.pipeline import early_experience  # noqa: E402
from dreamgym.pipeline.early_experience import (  # noqa: E402
    WORLD_RATE,
    implicit_world_modelling,
    reason,
    reflection_trees,
    self_reflection,
    try_alternatives,
    world_trees,
)
from dreamgym.pipeline.preference import prefer, preferences  # noqa: E402
from dreamgym.rl.context import Turn  # noqa: E402
from dreamgym.rl.policy import STATE_CONTEXT, Policy  # noqa: E402
from dreamgym.rl.reflective import ReflectiveContext  # noqa: E402
from examples.own_environment import adapter  # noqa: E402

CONTEXT = ReflectiveContext()
FIT = FitConfig(learning_rate=3e-3, epochs=8, row_length=512, rows=4)


@pytest.fixture(scope="module")
def tried(logged):  # noqa: F811
    episodes, start = logged
    demos = [e for e in episodes if e.behaviour == "expert" and e.stop == StopReason.WON][:5]
    counter = RealSteps()
    found = try_alternatives(Policy(LocalLM.load(start), 1.5), demos, adapter, counter, 4, 0)
    return demos, found, counter


def test_other_actions_are_really_tried_from_the_demonstrated_state_and_counted(tried):
    demos, found, counter = tried
    assert [(t.episode.id, t.at) for t in found] == [(e.id, i) for e in demos for i in range(len(e.transitions))]
    others = [(t, o) for t in found for o in t.others]
    assert len(others) > 5
    for t, other in others:
        assert other.action != t.demonstrated.action
        assert other.state == t.demonstrated.state
        opens = any(other.action == f"open {box}" and f"[room] {box}: closed" in other.state for box in ("crate", "chest", "drawer"))
        assert bool(other.added) >= opens, "what is said to have happened did"
    assert counter.counts == {"rl": sum(t.at + 1 for t, _ in others)}, "re-played steps too"


def test_an_environment_that_breaks_costs_its_own_alternative_alone(tried, logged, caplog):  # noqa: F811
    demos, found, _ = tried

    class Broken:
        def __init__(self, env):
            self.env, self.reset, self.close = env, env.reset, env.close

        async def step(self, action):
            if action.startswith("open"):
                raise KeyError(action)
            return await self.env.step(action)

    class Adapter:
        name = "broken"

        def env(self, counter):
            return Broken(adapter.env(counter))

    again = try_alternatives(Policy(LocalLM.load(logged[1]), 1.5), demos, Adapter(), RealSteps(), 4, 0)
    whole, left = ([o.action for t in f for o in t.others] for f in (found, again))
    assert 0 < len(left) < len(whole), "demonstrations that open nothing are still played"
    assert set(left) <= set(whole)
    assert "broken failed where" in caplog.text
    assert "KeyError" in caplog.text


def test_what_the_logs_saw_in_a_demonstrated_state_is_tried_without_a_real_step(tried, logged):  # noqa: F811
    episodes, start = logged
    demos, counter = tried[0], RealSteps()
    seen = {(e.task.id, t.state, t.action): t for e in episodes for t in e.steps}
    found = try_alternatives(Policy(LocalLM.load(start), 0.0), demos, adapter, counter, 3, 0, episodes)
    logged_there = [
        sum((t.episode.task.id, t.demonstrated.state) == key[:2] and key[2] != t.demonstrated.action for key in seen) for t in found
    ]
    assert max(logged_there) >= 3
    assert all(len(t.others) >= min(n, 3) for t, n in zip(found, logged_there, strict=True)), "up to three a state"
    assert all(len(t.others) <= 3 for t in found)
    executed = [(t, o) for t in found for o in t.others if (t.episode.task.id, o.state, o.action) not in seen]
    assert counter.total == sum(t.at + 1 for t, _ in executed), "real steps for those alone that nobody has seen"
    known = [(t, o) for t in found for o in t.others if (t.episode.task.id, o.state, o.action) in seen]
    assert known
    for t, other in known:
        logged_step = seen[t.episode.task.id, other.state, other.action]
        assert (other.state, other.change, other.outcome) == (t.demonstrated.state, logged_step.change, logged_step.outcome)
    again = try_alternatives(Policy(LocalLM.load(start), 0.0), demos, adapter, RealSteps(), 3, 0, episodes)
    assert [t.others for t in again] == [t.others for t in found]


def test_a_world_model_of_the_policy_learns_what_actions_change(tried, logged, tmp_path):  # noqa: F811
    demos, found, _ = tried
    lm = LocalLM.load(logged[1])
    trees = world_trees(lm, found)
    for t, tree in zip(found, trees, strict=True):
        for step, segment in zip((t.demonstrated, *t.others), tree.segments, strict=True):
            told = lm.decode(segment.ids[len(segment.ids) - segment.trained :]).strip(" ")
            assert (parse_reply(told).change, parse_reply(told).outcome) == (step.change, step.outcome)
    policy = implicit_world_modelling(logged[1], found, FIT, tmp_path / "iwm")
    turns = [Turn(e.task.instruction, t.state, ("x", i), e.transitions[:i]) for e in demos for i, t in enumerate(e.transitions)]
    said = [s.action for s in Policy(policy, 0.0).act(turns)]
    assert sum(a == t.action for a, t in zip(said, (t for e in demos for t in e.transitions), strict=True)) > len(said) / 2
    assert not (tmp_path / "iwm" / "checkpoints").exists()


def test_world_modelling_is_slow_and_imitation_has_the_other_updates(tried, logged, tmp_path, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(early_experience, "fit", lambda model, trees, config, folder: asked.append((config, len(pack(trees, 512)))))
    for rate, of_world in ((FIT.learning_rate, WORLD_RATE), (WORLD_RATE / 5, WORLD_RATE / 5)):
        implicit_world_modelling(logged[1], tried[1], FIT.model_copy(update={"learning_rate": rate}), tmp_path / str(rate))
        (world, rows), (imitation, others) = asked[-2:]
        assert (world.learning_rate, world.epochs, imitation.learning_rate) == (of_world, 1.0, rate)
        assert rows + others * imitation.epochs == pytest.approx(others * FIT.epochs)


def test_a_reflecting_policy_says_why_and_then_acts(tried, logged, tmp_path):  # noqa: F811
    _, found, _ = tried
    lm = LocalLM.load(logged[1])
    for t, tree in zip(found, reflection_trees(lm, found, CONTEXT), strict=True):
        assert len(tree.segments) == 1 + bool(t.others)
        for segment in tree.segments:
            assert CONTEXT.read(lm.decode(segment.ids[1:-1])) == (t.demonstrated.action, True)
    policy = self_reflection(logged[1], found, FIT.model_copy(update={"epochs": 40.0}), tmp_path / "sr")
    turns = [t.turn for t in found]
    said = Policy(policy, 0.0, 96, CONTEXT).act([Turn(t.instruction, t.state, ("x", i), t.past) for i, t in enumerate(turns)])
    assert sum(s.well_formed for s in said) > len(said) / 2
    known = {t.demonstrated.action for t in found}
    assert sum(s.action in known for s in said) > len(said) / 2
    assert sum(lm.decode(s.ids).lstrip().startswith("@why") for s in said) > len(said) / 5, "some say why, as it was taught beside acting"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), st.from_regex(r"[a-z_]{1,8}( [a-z_]{1,8}){0,4}", fullmatch=True))
def test_no_reason_can_be_read_as_the_action(why, action):
    assert CONTEXT.read(CONTEXT.reflected(why, action)) == (action, True)
    assert CONTEXT.read(CONTEXT.reply(action)) == (action, True)
    assert CONTEXT.read(f" @why {escape(why)} {action}")[1] is False, "a reason and nothing done"


def test_who_reflects_is_asked_as_who_does_not(logged):  # noqa: F811
    episodes, start = logged
    lm, steps = LocalLM.load(start), [(e, t) for e in episodes[:5] for t in e.steps]
    turns = [Turn(e.task.instruction, t.state, ()) for e, t in steps]
    assert CONTEXT.prompts(lm, turns) == STATE_CONTEXT.prompts(lm, turns)
    assert all(CONTEXT.reply(t.action) == STATE_CONTEXT.reply(t.action) for _, t in steps)


def test_a_reason_names_what_both_did():
    closed, opened, key = "[room] crate: closed", "[room] crate: open", "[crate] red_key: metal"
    good = Transition(state=(closed,), action="open crate", removed=(closed,), added=(key, opened), reward=0.0, outcome="go")
    idle = Transition(state=(closed,), action="look", reward=0.0, outcome="go")
    lost = Transition(state=(closed,), action="kick crate", reward=0.0, outcome="lost")
    assert reason(idle, good) == "look changes nothing , open crate brings red_key crate metal ; crate room open"
    assert reason(lost, good).startswith("kick crate loses , ")


def test_dpo_prefers_what_was_demonstrated(logged, tmp_path):  # noqa: F811
    pytest.importorskip("trl", reason="needs the extra [sft]")
    episodes, start = logged
    demos = [e for e in episodes if e.behaviour == "expert" and e.stop == StopReason.WON]
    pairs = preferences(demos, episodes)
    for _, state, chosen, other in pairs:
        assert any(t.state == state and t.action == chosen for e in demos for t in e.transitions)
        steps = [t for e in episodes for t in e.steps if t.state == state and t.action == other]
        assert any(t.outcome == "lost" or not (t.added or t.removed) for t in steps)
    before, after = LocalLM.load(start), prefer(start, pairs, tmp_path / "dpo", 0, 2.0, 1e-3)

    def margin(lm):
        total = 0.0
        for instruction, state, chosen, other in pairs[:20]:
            [prompt] = STATE_CONTEXT.prompts(lm, [Turn(instruction, state, ())])
            for action, sign in ((chosen, 1), (other, -1)):
                ids = [*lm.encode(STATE_CONTEXT.reply(action)), lm.eos]
                with torch.no_grad():
                    logp = torch.log_softmax(lm.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1], -1)
                total += sign * float(logp.gather(1, torch.tensor(ids)[:, None]).sum())
        return total

    assert margin(after) > margin(before) + 1
    with pytest.raises(DataError, match="nothing to prefer"):
        preferences(demos, demos[:1])


def test_policy_learning_begins_from_a_policy_that_says_why(tmp_path, small_start):
    words = ["--run", str(tmp_path / "run"), "--from", str(small_start), "sft.method=self_reflection", "sft.fit.epochs=10"]
    done = dreamgym("train", *words, "rl.iterations=1", "rl.probe_every=0", "rl.audit_floor=0")
    assert done.returncode == 0, done.stdout
    run = tmp_path / "run"
    warm, trained = (json.loads((run / "stages" / f"{name}.json").read_text()) for name in ("warm-start", "train"))
    assert warm["alternatives"] > 0
    assert warm["learning_real_steps"] == sum(map(int, (run / "sft" / "real_steps.txt").read_text().split()[1::2] or [0]))
    assert trained["rl_real_steps"] == 0
    assert not (run / "imitation").exists()
    played = list(read_episodes(run / "policy_run" / "episodes.jsonl"))
    commands = {t.action.partition(" ")[0] for e in played for t in e.transitions}
    assert commands & {"open", "take", "unlock", "look"}, "what stands behind @do is what it does"
    assert "error: baseline iwm: begins from imitation" in dreamgym("baseline", "iwm", "--run", str(run)).stdout
