"""The judge of dreamed steps, against a real HTTP server."""

import json

import pytest
from test_core import an_episode

pytest.importorskip("openai", reason="needs the extra [endpoint]")

from benchmarks.loopback import LoopbackServer, sections
from dreamgym.core.types import StopReason
from dreamgym.endpoint.client import Endpoint
from dreamgym.endpoint.config import EndpointConfig
from dreamgym.experience.judge import WellJudged, judge_steps
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.replay.enrichment import Enriched

EPISODES = [an_episode("dream", name=f"e{i}") for i in range(5)]


def scores(**changes):
    rubric = {"causal_consistency": 2, "diversity": 1, "informativeness": 2, "hallucination": 2}
    return json.dumps({"rubric_scores": {**rubric, **changes}})


def test_means_of_the_scores_over_a_sample_of_steps():
    def judge(body):
        read = sections(body["messages"][-1]["content"])
        return scores(hallucination=0 if read["Action"] == ["eat lime"] else 2)

    with LoopbackServer(judge) as server:
        found = judge_steps(Endpoint(EndpointConfig(base_url=server.url, model="m")), EPISODES, 100, 0)
        assert (found.scored, found.unusable) == (10, 0)
        assert found.means == {"causal_consistency": 2.0, "diversity": 1.0, "informativeness": 2.0, "hallucination": 1.0}
        assert judge_steps(Endpoint(EndpointConfig(base_url=server.url, model="m")), EPISODES, 4, 0).scored == 4


def test_an_unusable_score_is_counted_apart_and_never_a_zero():
    with LoopbackServer(lambda body: scores(diversity=3)) as server:
        found = judge_steps(Endpoint(EndpointConfig(base_url=server.url, model="m")), EPISODES[:1], 100, 0)
        assert (found.means, found.scored, found.unusable) == ({}, 0, 2)
        assert len(server.bodies) == 6
    invalid = an_episode("dream", StopReason.INVALID_REPLY)
    with LoopbackServer(lambda body: scores()) as server:
        assert judge_steps(Endpoint(EndpointConfig(base_url=server.url, model="m")), [invalid], 5, 0).scored == 0


def test_only_what_is_consistent_and_not_made_up_comes_into_a_buffer():
    def judge(body):
        read = sections(body["messages"][-1]["content"])
        return scores(hallucination=0) if read["Action"] == ["eat lime"] else scores(causal_consistency=1)

    real = an_episode("real", name="real")
    with LoopbackServer(judge) as server:
        rule = WellJudged(Endpoint(EndpointConfig(base_url=server.url, model="m")))
        replay = Enriched(ReplayBuffer(), [rule])
        replay.add([*EPISODES, real], 1)
        assert len(server.bodies) == len(EPISODES), "one step of each dreamed one, none of the real one"
        asked = [sections(body["messages"][-1]["content"])["Action"] for body in server.bodies]
    refused = sum(action == ["eat lime"] for action in asked)
    assert 0 < refused < len(EPISODES)
    assert replay.metrics()["buffer_refused_judged"] == refused
    assert "real" in {e.id for e in replay.buffer.episodes()}
    with LoopbackServer(lambda body: "no score") as server:
        assert WellJudged(Endpoint(EndpointConfig(base_url=server.url, model="m"))).admits(EPISODES[:2], replay.buffer) == [False, False]
