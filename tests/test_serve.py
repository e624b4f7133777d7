"""Against a server that others wrote: ``transformers serve`` with a tiny random chat model, over loopback HTTP."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs transformers[serving]")
pytest.importorskip("openai", reason="needs the extra [endpoint]")
pytest.importorskip("trl", reason="needs the extra [sft]")

from test_chat_sft import EPISODES, tiny
from test_endpoint import REQUEST

from dreamgym.core.errors import EndpointError
from dreamgym.core.types import StopReason
from dreamgym.endpoint.client import Endpoint
from dreamgym.endpoint.config import Ask, EndpointConfig
from dreamgym.experience.chat import EndpointReply
from dreamgym.experience.endpoint import EndpointExperienceModel
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.experience.teach import AnnotatorConfig, quarantined, summary, teach
from dreamgym.replay.buffer import ReplayBuffer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and model name of a running server."""
    model = tiny(tmp_path_factory.mktemp("model"), "qwen2")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    words = [str(program), "serve", str(model), "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = open(model / "serve.log", "w")  # noqa: SIM115 (closed below)
    process = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
    for _ in range(240):
        assert process.poll() is None, (model / "serve.log").read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}/v1", str(model)
    process.terminate()
    process.wait(timeout=30)
    log.close()


def endpoint(server, **more):
    return Endpoint(EndpointConfig(base_url=server[0], model=server[1], structured=False, timeout_s=60.0, **more))


def test_replies_come_with_their_tokens_counted(server):
    client = endpoint(server)
    answers = client.ask([Ask(messages=(("user", f"say {i}"),), budget=5) for i in range(3)])
    assert not any(a.failed for a in answers)
    assert client.counts["tokens_in"] > 0
    assert 0 < client.counts["tokens_out"] <= 15


def test_the_babble_of_random_weights_is_an_invalid_step_with_its_reason(server):
    model = EndpointExperienceModel(
        endpoint(server), ExperienceConfig(k=0), EndpointReply(reasoning_tokens=8, outcome_tokens=8, samples=2), ReplayBuffer().snapshot()
    )
    answer = model.predict([REQUEST])[0]
    assert (answer.reward, answer.invalid) == (None, StopReason.INVALID_REPLY)
    assert sum(model.reasons.values()) == 2


def test_an_annotation_by_random_weights_is_quarantined_episode_by_episode(server, tmp_path):
    client = endpoint(server)
    config = AnnotatorConfig(server=client.config, tokens_per_step=8, attempts=2)
    assert list(teach(EPISODES[:2], config, client, tmp_path)) == []
    assert [n.episode for n in quarantined(tmp_path)] == ["e0", "e1"]
    assert all(n.error and not n.failed for n in quarantined(tmp_path))
    assert summary(tmp_path, config)["tokens_out"] > 0


def test_an_unknown_model_is_refused_or_fails_and_is_never_an_answer(server):
    other = Endpoint(EndpointConfig(base_url=server[0], model="no/such-model", attempts=1, timeout_s=20.0))
    try:
        answered = not other.ask([Ask(messages=(("user", "hi"),), budget=2)])[0].failed
    except EndpointError:
        answered = False
    assert not answered
