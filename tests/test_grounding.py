"""A run's buffer: seeded once, whatever is killed; read by audits as the logs alone; grown as its configuration says."""

import pytest
from test_replay import command, episode

from dreamgym.core.errors import ConfigError, DataError
from dreamgym.core.files import write_episodes
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.grounding import growing, logged, run_buffer
from dreamgym.pipeline.run import BUFFER, LOGS, Run
from dreamgym.replay.contract import Query
from dreamgym.replay.enrichment import Enriched
from dreamgym.replay.rerank import Reranked


def a_run(folder, *overrides) -> Run:
    run = Run(folder, load_config(None, list(overrides)))
    write_episodes(run.path(LOGS), [episode(i) for i in range(9)])
    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["replay.enrichment=filtered"], "filtered and admit go together"),
        (["replay.admit.novelty=0.9"], "filtered and admit go together"),
        (["replay.enrichment=filtered", "replay.admit={}"], "give surprise, novelty or judge"),
        (["replay.enrichment=real_frozen", "replay.capacity=9"], "capacity has nothing to do"),
        (["replay.encoder=m", "replay.embeddings={base_url: u, model: m, dimension: 3}"], "either encoder or embeddings"),
        (["experience.prompt.k=0", "replay.capacity=9"], "nothing is retrieved with experience.prompt.k: 0"),
        (["replay.order.mmr=0"], "replay.order.mmr"),
        (["replay={enrichment: real_frozen, order: {real_share: 0.5}}"], "real_share has nothing to do"),
        (["replay.capacity=9", "rl.environment=real"], "nothing comes in with rl.environment: real"),
        (
            ["replay={enrichment: filtered, admit: {surprise: 1}}", "experience.endpoint.server={base_url: u, model: m}"],
            "needs a local experience model",
        ),
    ],
)
def test_settings_that_would_do_nothing_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_the_buffer_is_seeded_once_and_audits_read_the_logs_alone(tmp_path):
    run = a_run(tmp_path / "run")
    replay = growing(run)
    assert isinstance(replay, Enriched)
    replay.add([episode(20, "dream")], 1)
    steps = sum(len(episode(i).steps) for i in range(9))
    assert len(replay) == steps + len(episode(20).steps)
    t = episode(20).transitions[0]
    assert replay.snapshot().topk([Query(t.state, t.action)], 1)[0][0].episode == "e20"
    assert all(h.source == "real" for h in logged(run).topk([Query(t.state, t.action)], 50)[0])
    with pytest.raises(DataError, match="takes one writer"):
        run_buffer(run, "rw")
    replay.buffer.close()
    run.path(LOGS).unlink()
    assert len(run_buffer(run, "rw")) == len(replay), "it is not read again"


def test_a_seeding_that_was_killed_is_done_again(tmp_path):
    run = a_run(tmp_path / "run")
    run.path(BUFFER).mkdir()
    (run.path(BUFFER) / "data-1").mkdir()
    (run.path(BUFFER) / "current").write_text("data-1\n")
    assert len(run_buffer(run)) == sum(len(episode(i).steps) for i in range(9))


def test_what_the_configuration_says_is_what_is_searched(tmp_path):
    assert growing(a_run(tmp_path / "a", "replay.enrichment=real_frozen")) is None
    assert growing(a_run(tmp_path / "b", "experience.prompt.k=0")) is None
    assert len(run_buffer(a_run(tmp_path / "c", "experience.prompt.k=0"))) > 0, "training chooses by it what to repeat"
    chosen = a_run(tmp_path / "d", "replay={enrichment: filtered, admit: {surprise: 2, novelty: 0.9}, capacity: 40, order: {mmr: 0.5}}")
    replay = growing(chosen)
    assert replay is not None
    assert ([r.name for r in replay.rules], replay.capacity) == (["unsure", "known"], 40)
    t = episode(0).transitions[0]
    query = [Query(t.state, t.action)]
    assert replay.snapshot().topk(query, 3) == Reranked(replay.buffer.snapshot(), chosen.config.replay.order).topk(query, 3)
    assert isinstance(logged(chosen), Reranked)


def test_a_run_goes_on_when_its_servers_have_moved(tmp_path):
    words = ["replay={enrichment: filtered, admit: {judge: {base_url: 'http://PORT/v1', model: j}}}"]
    words += ["replay.embeddings={base_url: 'http://PORT/v1', model: m, dimension: 3}"]
    Run(tmp_path / "run", load_config(None, [w.replace("PORT", "a") for w in words]))
    Run(tmp_path / "run", load_config(None, [w.replace("PORT", "b") for w in words]))
    (tmp_path / "run" / "logs.jsonl.xz").touch()
    with pytest.raises(ConfigError, match="another configuration"):
        Run(tmp_path / "run", load_config(None, [w.replace("model: m", "model: n") for w in words]))


def test_a_buffer_of_a_run_under_way_is_left_alone(tmp_path):
    run = a_run(tmp_path / "run")
    run_buffer(run).close()
    run.path("policy_run/checkpoint").mkdir(parents=True)
    for words in (("compact", run.path(BUFFER)), ("import", run.path(BUFFER), run.path(LOGS))):
        code, said = command(*words)
        assert (code, "whose training has not finished" in " ".join(said.split())) == (1, True)


def test_what_a_judge_of_dreamed_episodes_took_is_among_the_metrics(tmp_path):
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from test_judge import scores

    from benchmarks.loopback import LoopbackServer

    with LoopbackServer(lambda body: scores()) as server:
        judge = f"{{judge: {{base_url: '{server.url}', model: j}}}}"
        replay = growing(a_run(tmp_path / "run", "replay.enrichment=filtered", f"replay.admit={judge}"))
        assert replay is not None
        replay.add([episode(i, "dream") for i in range(20, 23)], 1)
        first, idle = replay.metrics(), replay.metrics()
        replay.add([episode(23, "dream")], 2)
        second = replay.metrics()
    assert (first["buffer_admitted"], first["admission_calls"], idle["admission_calls"], second["admission_calls"]) == (3, 3, 0, 1)
    assert first["admission_tokens_in"] > 0 < first["admission_tokens_out"]
    assert idle["admission_tokens_in"] == idle["admission_tokens_out"] == 0
    replay.buffer.close()
