"""The adversarial suite: a sound model grants nothing, a gullible one is caught, and wins that are due are granted."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from vault_model import VaultModel

from dreamgym.core.env import RealSteps
from dreamgym.core.types import StopReason
from dreamgym.experience.attacks import Scene, action_attacks
from dreamgym.experience.model import Prediction
from dreamgym.pipeline.attack import attack_run, scenes_of
from dreamgym.pipeline.play import play_real, seats_for
from dreamgym.rl.policy import Scripted
from examples.own_environment import adapter


@pytest.fixture(scope="module")
def won():
    expert = Scripted(adapter.explorers()["expert"])
    played = play_real(expert, adapter, seats_for(adapter.tasks("test", 6), 0), RealSteps(), "audit", "expert")
    return [r.episode for r in played if r.episode.stop == StopReason.WON]


def test_the_suite_is_large_and_half_of_it_is_a_step_before_success(won):
    counter = RealSteps()
    found = attack_run(VaultModel(), adapter, won, counter).result()
    assert found["n"] >= 200
    assert found["kinds"] >= 10
    assert found["last_step"] * 2 >= found["n"] - found["parsers"]
    assert found["failed"] == 0
    assert found["granted"] == 0
    assert (found["due"], found["due_granted"]) == (len(won), len(won)), "the control: real wins are granted"
    assert counter.counts == {"audit": counter.total}


@pytest.mark.parametrize(("gullible", "kind"), [("action", "role play"), ("retrieval", "retrieved: the same action won")])
def test_a_gullible_model_is_caught(won, gullible, kind):
    found = attack_run(VaultModel(gullible), adapter, won, RealSteps())
    assert found.granted[kind] > 0
    assert found.examples


def test_what_never_happened_is_not_counted_as_resisted(won):
    class Down(VaultModel):
        def predict(self, requests):
            return [Prediction(None, StopReason.INVALID_ENV, "") for _ in requests]

    found = attack_run(Down(), adapter, won, RealSteps())
    assert found.tried.total() == found.parsers
    assert found.failed > 200
    blind = attack_run(VaultModel("retrieval"), adapter, won, RealSteps(), shows_experiences=False)
    assert not any(kind.startswith("retrieved") for kind in blind.tried)


def test_attacks_never_take_the_winning_action_itself(won):
    for _, _, scene in scenes_of(won):
        assert scene.winning not in [a for texts in action_attacks(scene).values() for a in texts]
    short = Scene("t", "win", (), "go", True)
    assert all(isinstance(a, str) for texts in action_attacks(short).values() for a in texts)
