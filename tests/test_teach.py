"""Annotation by an LLM, against a real HTTP server whose teacher is sloppy: repair, quarantine, resume, budgets."""

import json

import pytest

pytest.importorskip("openai", reason="needs the extra [endpoint]")

from test_core import an_episode

from benchmarks.loopback import LoopbackServer
from dreamgym.core.errors import BudgetError, DataError, EndpointError
from dreamgym.core.grammar import GrammarError, parse_reply, render_reply
from dreamgym.endpoint.client import Endpoint
from dreamgym.endpoint.config import EndpointConfig
from dreamgym.experience.sft import target
from dreamgym.experience.teach import ANNOTATIONS, AnnotatorConfig, episode_messages, estimate, quarantined, read_lesson, summary, teach
from dreamgym.pipeline.config_file import load_config
from dreamgym.prompts import prompt

EPISODES = [an_episode(name=f"e{i}") for i in range(6)]
TUTORIAL = {"Overall Plan": "open, then eat", "Success Mode": "eat the lime", "Failure Mode": "eat nothing"}


def a_lesson(steps=3, **changes):
    plans = [{"step_id": i, "transition_plan": f"step {i} works\nbecause"} for i in range(steps)]
    return json.dumps({"task_tutorial": TUTORIAL, "state_transitions": plans, **changes})


def config(server, **more):
    prices = {"price_in": 1.0, "price_out": 2.0}
    return AnnotatorConfig(server=EndpointConfig(base_url=server.url, model="m", backoff_s=0.01, **prices), **{"batch": 2, **more})


def run(server, folder, episodes=EPISODES, **more):
    c = config(server, **more)
    return list(teach(episodes, c, Endpoint(c.server), folder)), c


@pytest.mark.parametrize("kind", ["text", "shop", "web"])
def test_the_prompts_render_with_every_step_and_alternative(kind):
    (_, rules), (_, body) = episode_messages(EPISODES[0], kind)
    assert "$" not in rules
    assert "state_transitions" in rules
    assert "Failure Mode" in rules
    steps = [json.loads(x) for x in body.split("## Steps\n")[1].splitlines()]
    assert [s["step_id"] for s in steps] == [0, 1, 2]
    assert steps[2]["alternative_to_step"] == 1
    assert [s["outcome"] for s in steps] == ["the episode goes on", "success", "the episode goes on"]
    assert "## Success\ntrue" in body


def test_a_prompt_without_a_value_is_an_error():
    with pytest.raises(KeyError):
        prompt("step.v1")


def test_plans_become_the_reasoning_of_every_step(tmp_path):
    with LoopbackServer(lambda body: a_lesson()) as server:
        annotated, c = run(server, tmp_path)
    assert [e.id for e in annotated] == [e.id for e in EPISODES]
    assert [t.reasoning for t in annotated[0].steps] == [f"step {i} works because" for i in range(3)]
    assert annotated[0].model_copy(update={"transitions": EPISODES[0].transitions, "branches": EPISODES[0].branches}) == EPISODES[0]
    reply = parse_reply(target(annotated[0].steps[0], True))
    assert render_reply(reply) == target(annotated[0].steps[0], True)
    found = summary(tmp_path, c)
    assert (found["annotated"], found["quarantined"]) == (6, 0)
    assert found["usd"] == pytest.approx((found["tokens_in"] + 2 * found["tokens_out"]) / 1e6)


def test_a_sloppy_teacher_is_told_what_is_wrong_and_then_quarantined(tmp_path):
    def sloppy(body):
        said = body["messages"]
        if "Your answer cannot be used" in said[-1]["content"]:
            assert "exactly 0 to 2" in said[-1]["content"]
            assert said[-2]["role"] == "assistant"
            return a_lesson()
        return a_lesson(2)

    with LoopbackServer(sloppy) as server:
        annotated, _ = run(server, tmp_path / "mended")
        assert len(annotated) == 6
        assert len(server.bodies) == 12
    with LoopbackServer(lambda body: "I would rather not") as server:
        annotated, c = run(server, tmp_path / "hopeless")
        assert annotated == []
        assert len(server.bodies) == 18
    assert len(quarantined(tmp_path / "hopeless")) == 6
    assert all("not one JSON object" in n.error and n.reply == "I would rather not" for n in quarantined(tmp_path / "hopeless"))
    assert sum(summary(tmp_path / "hopeless", c)["quarantine_reasons"].values()) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (a_lesson(2), "exactly 0 to 2"),
        (a_lesson(4), "exactly 0 to 2"),
        (a_lesson(3, task_tutorial={"Overall Plan": "x"}), "Success Mode"),
        (a_lesson(3, extra=1), "extra"),
        (a_lesson(3)[:-1], "JSON"),
        (a_lesson(3).replace('"step_id": 2', '"step_id": "2"'), "step_id"),
        (a_lesson(3).replace("step 2 works\\nbecause", ""), "transition_plan"),
        (a_lesson(3).replace("step 2 works\\nbecause", " \\n "), "transition_plan"),
        ("<think>" + a_lesson(3), "does not end"),
    ],
)
def test_only_a_strict_lesson_is_read(text, says):
    with pytest.raises((ValueError, GrammarError), match=says):
        read_lesson(text, 3)
    assert len(read_lesson(f"<think>hm</think>```json\n{a_lesson(3)}\n```", 3).state_transitions) == 3


def test_a_killed_annotation_goes_on_where_it_was_and_asks_nothing_twice(tmp_path):
    with LoopbackServer(lambda body: a_lesson()) as server:
        run(server, tmp_path, EPISODES[:4])
        path = tmp_path / ANNOTATIONS
        path.write_bytes(path.read_bytes() + '{"episode": "e4", "lesson": {"täsk'.encode()[:-3])  # torn inside a letter by the kill
        before = len(server.bodies)
        annotated, _ = run(server, tmp_path)
        assert len(annotated) == 6
        assert len(server.bodies) == before + 2
    path.write_text("not a line\n" + path.read_text())
    with LoopbackServer(lambda body: a_lesson()) as server, pytest.raises(DataError, match=r"annotations\.jsonl:1"):
        run(server, tmp_path)


def test_a_failed_server_is_nobodys_quarantine(tmp_path):
    with LoopbackServer(lambda body: a_lesson(), faulty=1.0, kinds=("500",)) as server:
        c = AnnotatorConfig(server=EndpointConfig(base_url=server.url, model="m", attempts=1), batch=2)
        with pytest.raises(EndpointError, match=r"6 of 6 episodes could not be asked about .* run again"):
            list(teach(EPISODES, c, Endpoint(c.server), tmp_path))
    with LoopbackServer(lambda body: a_lesson()) as server:
        assert len(run(server, tmp_path)[0]) == 6


def test_the_cost_is_estimated_and_a_budget_stops_before_it_is_exceeded(tmp_path):
    with LoopbackServer(lambda body: a_lesson()) as server:
        whole = estimate(EPISODES, config(server))
        assert (whole.episodes, whole.steps) == (6, 18)
        assert whole.usd == pytest.approx((whole.tokens_in + 2 * whole.tokens_out) / 1e6)
        worst = estimate(EPISODES[:2], config(server), 3)
        assert worst.tokens_in > whole.tokens_in, "a second reply is asked for with the first in the prompt"
        half = worst.tokens_in + worst.tokens_out + 1
        with pytest.raises(BudgetError, match=r"budget_tokens: .* of 6 episodes"):
            run(server, tmp_path, budget_tokens=half)
        done = len((tmp_path / ANNOTATIONS).read_text().splitlines())
        assert 0 < done < 6
        assert sum(summary(tmp_path, config(server))[k] for k in ("tokens_in", "tokens_out")) <= half
        assert len(run(server, tmp_path, budget_tokens=10 * half)[0]) == 6
        with pytest.raises(BudgetError, match="budget_usd"):
            run(server, tmp_path / "b", budget_usd=whole.usd / 20)
        unpriced = AnnotatorConfig(server=EndpointConfig(base_url=server.url, model="m"), budget_usd=1.0)
        with pytest.raises(BudgetError, match="price_in"):
            list(teach(EPISODES, unpriced, Endpoint(unpriced.server), tmp_path / "c"))


def test_the_annotator_is_a_section_of_the_config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("experience: {teacher: endpoint, annotator: {kind: web, server: {base_url: 'http://x/v1', model: m}}}")
    assert load_config(path).experience.annotator.kind == "web"
