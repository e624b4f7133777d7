"""An experience model that says nothing where it is not sure, over real HTTP: what is refused, what is remembered, what it costs."""

import json

import pytest

pytest.importorskip("openai", reason="needs the extra [endpoint]")

from test_endpoint import EPISODE, REQUEST, a_model

from benchmarks.loopback import LoopbackServer, from_logs
from dreamgym.core.types import StopReason
from dreamgym.experience.cautious import Cautious
from dreamgym.experience.fidelity import disagreement
from dreamgym.experience.model import ExperienceModel
from dreamgym.experience.prompt import Request
from dreamgym.pipeline.play import play_dream, seats_for
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.policy import Scripted

EAT = Request("cook", (), (), EPISODE.transitions[1].state, "eat lime", "e2", "t/2", (0, "t/2", 0, 1))
OTHERWISE = json.dumps({"reasoning": "perhaps not", "removed": [], "added": [], "outcome": "continue"})


def wavering(share: int):
    """Answers as logged at temperature 0; of four draws of ``eat lime`` about ``share`` say that nothing happens."""
    logged = from_logs([EPISODE])

    def respond(body):
        doubtful = "eat lime" in body["messages"][-1]["content"] and body["temperature"] > 0
        return OTHERWISE if doubtful and body["seed"] % 4 < share else logged(body)

    return respond


def cautious(url: str, above: float) -> Cautious:
    model = a_model(url)
    return Cautious(model, lambda retrieval: model.draw, ReplayBuffer().snapshot(), samples=16, above=above)


def test_only_steps_that_the_draws_confirm_are_answered():
    with LoopbackServer(wavering(4)) as server:
        model: ExperienceModel = cautious(server.url, above=0.5)
        sure, unsure = model.predict([REQUEST, EAT])
        assert sure.reply is not None
        assert sure.reply.change == EPISODE.transitions[0].change
        assert (unsure.reply, unsure.invalid, unsure.reward) == (None, StopReason.INVALID_UNCERTAIN, None)
        assert "1.00 of the draws say otherwise" in unsure.text
        calls = len(server.bodies)
        assert model.recall(REQUEST) == sure
        assert model.recall(EAT) == unsure
        assert model.predict([REQUEST, EAT]) == [sure, unsure]
        assert len(server.bodies) == calls, "a known doubt is not asked about again"
        costs = model.costs()
        assert (costs["experience_calls_asked_again"], costs["experience_calls_uncertain"]) == (2, 1)


def test_the_bound_decides_and_a_new_snapshot_asks_anew():
    with LoopbackServer(wavering(1)) as server:
        model = cautious(server.url, above=0.9)
        assert model.predict([EAT])[0].reward == 1.0
        doubt = disagreement(model.model.predict([EAT])[0], model.draw([EAT], 16)[0])
        assert 0 < doubt < 0.9
        calls = len(server.bodies)
        model.use(ReplayBuffer().snapshot())
        model.predict([EAT])
        assert len(server.bodies) > calls
        strict = cautious(server.url, above=0.0)
        assert strict.predict([EAT])[0].invalid is StopReason.INVALID_UNCERTAIN


def test_an_uncertain_win_is_no_reward_and_its_episode_is_invalid():
    def cook(instruction, state, rng):
        return "open fridge" if state == REQUEST.state else "eat lime"

    with LoopbackServer(wavering(4)) as server:
        model = cautious(server.url, above=0.5)
        episode = play_dream(Scripted(cook), model, 5, seats_for([EPISODE.task], 0))[0].episode
    assert episode.stop is StopReason.INVALID_UNCERTAIN
    assert not episode.valid
    assert episode.transitions[-1].reward is None
