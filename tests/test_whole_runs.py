"""Whole runs through the command line: killed and resumed, learning on for real, continued by another run, played by a server."""

import ast
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ENV, ROOT, SMALL, code_of, dreamgym

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")


def level_keys() -> set[str]:
    """The keys that ``benchmarks/tables.py`` writes for each level."""
    tree = ast.parse((Path(__file__).parents[1] / "benchmarks" / "tables.py").read_text())
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "level_result")
    written = next(n.value for n in function.body if isinstance(n, ast.Return))
    assert isinstance(written, ast.Dict)
    return {k.value for k in written.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}


def test_the_whole_way_on_a_users_own_environment_killed_and_resumed(tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "dreamgym.cli", "quickstart", "--run", str(run), *SMALL]
    for stage, sent in (("warm-start", signal.SIGINT), ("policy_run/metrics.jsonl", signal.SIGKILL)):
        mark = run / (f"stages/{stage}.json" if "/" not in stage else stage)
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background inherit "ignored"
        )
        while not (mark.exists() or process.poll() is not None):
            time.sleep(0.05)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=300)
        assert mark.exists(), output
        if sent == signal.SIGINT and process.returncode != 0:
            assert process.returncode == 130, output
            assert "run the same command again" in output
    before = (run / "stages" / "warm-start.json").read_text()
    assert dreamgym("audit", "--run", str(run)).returncode == 0, "of the experience model alone: the policy is not there yet"
    early = dreamgym("report", "--run", str(run))
    assert "results.json is not written: it also needs the stages train, eval-policy" in early.stdout.replace("\n", " ")
    refused = dreamgym("quickstart", "--run", str(run), *SMALL, "rl.audit_floor=1")
    assert refused.returncode == 1
    assert "below rl.audit_floor 1" in refused.stdout, "a dream that is often wrong trains nobody unasked"
    done = dreamgym("quickstart", "--run", str(run), *SMALL, "rl.audit_floor=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audit: success_precision" in done.stdout
    assert "warm-start: done before" in done.stdout
    assert "audit: done before" not in done.stdout, "there is a policy to audit now"
    assert (run / "stages" / "warm-start.json").read_text() == before
    metrics = [json.loads(line)["iteration"] for line in (run / "policy_run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [0, 1, 2]
    holds_what_was_logged_and_dreamed(run)
    results = json.loads((run / "results.json").read_text())
    assert level_keys() <= results.keys(), "a run's results have the keys of a level in slice.json"
    assert results["real_steps"].keys() >= {"logs", "rl", "probe", "rl_control"}
    assert results["real_steps"]["rl"] == 0
    assert results["real_steps"]["probe"] > 0
    assert results["n_test"] == 8
    assert len(results["rows"]) == 16
    after = results["evaluation"]["policy"]
    assert after["pass_at"]["1"] == pytest.approx(results["after"][0])
    assert after["pass_at"]["1"] <= after["pass_at"]["2"]
    assert 0 <= after["no_effect"] <= 1
    assert 0 <= results["audit"]["next_state_macro"] <= 1
    assert (run / "report.html").exists()
    (run / "results.json").unlink()
    assert dreamgym("report", "--run", str(run)).returncode == 0
    assert json.loads((run / "results.json").read_text())["after"] == results["after"]
    assert "before" in done.stdout
    assert "after" in done.stdout
    another_run_takes_what_it_has_in_common(run, tmp_path)
    others_learn_from_its_logs_without_rewards(run, results)
    learns_on_in_the_real_environment(run)


def another_run_takes_what_it_has_in_common(run, tmp_path):
    ours = tmp_path / "ppo"
    words = ["train", "--stages", "start", "--run", str(ours), "--from", str(run)]
    done = dreamgym(*words, "rl.advantage=gae")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "collect, annotate, base, train-experience, warm-start" in done.stdout.replace("\n", " ")
    for file in ("logs.jsonl.xz", "annotated.jsonl.xz", "experience/model.safetensors", "sft/model.safetensors"):
        assert (ours / file).read_bytes() == (run / file).read_bytes()
    collected = [json.loads((folder / "stages" / "collect.json").read_text()) for folder in (ours, run)]
    assert collected[0] == collected[1] | {"taken_from": str(run)}, "its real steps count here too"
    assert not (ours / "policy").exists()
    assert "advantage: gae" in (ours / "config.yaml").read_text()
    assert "nothing more" in dreamgym(*words).stdout
    words[4] = str(tmp_path / "seed")
    done = dreamgym(*words, "seed=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train-experience (warm-start is made here: seed differ" in done.stdout.replace("\n", " ")
    assert (tmp_path / "seed/sft/model.safetensors").read_bytes() != (run / "sft/model.safetensors").read_bytes()
    words[4] = str(tmp_path / "other")
    done = dreamgym(*words, "env=textworld/easy", "logs=shipped", "base=shipped")
    assert done.returncode == 1
    assert "nothing can be taken from it; collect is made here: env, logs, collect_tasks differ" in done.stdout.replace("\n", " ")


def others_learn_from_its_logs_without_rewards(run, before):
    refused = dreamgym("baseline", "ppo", "--run", str(run))
    assert refused.returncode == 1
    assert "use sft_all, dpo, iwm, self_reflection" in refused.stdout
    for name in ("dpo", "self_reflection"):
        done = dreamgym("baseline", name, "--run", str(run), "baselines.alternatives=1")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((run / "stages" / f"baseline-{name}.json").read_text())
        assert 0 <= found["real_success"] <= 1
        assert found["games"] == 8
        assert (found["learning_real_steps"] > 0) == (name == "self_reflection"), "what is tried for real is counted"
        assert (run / "baselines" / name / "model.safetensors").exists()
        assert not (run / "baselines" / name / "checkpoints").exists()
        assert len((run / f"eval-{name}-test.jsonl").read_text().splitlines()) == 16
    assert found["alternatives"] <= found["states"]
    other = dreamgym("baseline", "sft_all", "--run", str(run), "baselines.alternatives=3")
    assert "another configuration" in other.stdout, "before the first of them this was free"
    assert dreamgym("report", "--run", str(run)).returncode == 0
    results = json.loads((run / "results.json").read_text())
    assert set(results["baselines"]) == {"dpo", "self_reflection"}
    assert results["after"] == before["after"]
    assert results["baselines"]["dpo"]["real_steps"] == {"rl": 0}


def learns_on_in_the_real_environment(run):
    """S2R within a budget; a raised one lets it go on where it stood."""
    spent = []
    for budget in (150, 450):
        done = dreamgym("train", "--stages", "dream,real", "--run", str(run), *SMALL, "rl.audit_floor=0", f"s2r.real_budget={budget}")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((run / "stages" / "sim-to-real.json").read_text())
        assert found["ended"] in ("budget", "iterations")
        assert 0 < found["rl_real_steps"] <= budget
        assert (found["ended"] == "budget") == (f"budget of {budget} real steps bears no further iteration" in done.stdout)
        spent.append((found["ended"], found["iterations"], found["rl_real_steps"]))
    assert spent[0][0] == "budget"
    assert spent[1][1] > spent[0][1]
    assert spent[1][2] > spent[0][2]
    assert "sim-to-real: done before" in dreamgym("train", "--stages", "dream,real", "--run", str(run)).stdout
    other = dreamgym("train", "--stages", "dream,real", "--run", str(run), "s2r.tasks=2")
    assert other.returncode == 1
    assert "another configuration" in other.stdout, "before it began this was free"
    (run / "stages" / "sim-to-real.json").unlink()
    shutil.copy(run / "sft" / "model.safetensors", run / "policy" / "model.safetensors")
    moved = dreamgym("train", "--stages", "dream,real", "--run", str(run))
    assert moved.returncode == 1
    assert "began from another policy" in moved.stdout
    assert f"real steps spent in it: {spent[1][2]} rl" in moved.stdout.replace("\n", " ")
    (run / "stages" / "sim-to-real.json").write_text(json.dumps(found))
    assert dreamgym("eval", "--run", str(run)).returncode == 0
    assert dreamgym("report", "--run", str(run)).returncode == 0
    s2r = json.loads((run / "results.json").read_text())["s2r"]
    assert s2r["real_steps"]["rl"] == spent[1][2]
    assert 0 <= s2r["after"][0] <= 1
    assert "learning on in the real environment" in (run / "report.html").read_text()
    plays_its_dream_as_a_gymnasium_environment(run)
    goes_on_in_another_run(run, run.parent / "next")


def plays_its_dream_as_a_gymnasium_environment(run):
    found: dict[str, object] = {}
    exec(code_of("own-environment.md", "TextGym(").replace("runs/mine", str(run)), found)
    env = found["env"]
    assert str(found["observation"]).startswith("[room]")
    observation, reward, terminated, truncated, info = env.step("dance")
    assert reward == 0.0 or (truncated and info["invalid"])
    assert isinstance(observation, str)
    assert not terminated or reward in (0.0, 1.0)


def goes_on_in_another_run(run, following):
    """Logs, experience model and policy of an earlier run and what it met for real; never what it was evaluated or probed on."""
    from dreamgym.core.files import read_episodes
    from dreamgym.pipeline.config_file import load_config
    from dreamgym.pipeline.continued import lesson
    from dreamgym.pipeline.grounding import logged
    from dreamgym.pipeline.logs import tasks_of
    from dreamgym.pipeline.run import Run

    words = ["--run", str(following), "--config", str(run / "config.yaml"), f"continued.run={run}", "continued.rehearsal=0.1"]
    other = dreamgym("train", *words)
    assert other.returncode == 1
    assert "so the same tasks would come first; give another one" in other.stdout.replace("\n", " ")
    words += ["seed=1", "experience.fit.epochs=1", "rl.iterations=1", "rl.audit_floor=0"]
    done = dreamgym("quickstart", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"of learning and probes in {run} and before".replace(" ", "") in "".join(done.stdout.split()), "a narrow console breaks paths"
    assert f"before (the policy of {run})" in (following / "report.html").read_text()
    old, now = (list(read_episodes(p / "logs.jsonl.xz")) for p in (run, following))
    met = [e for e in read_episodes(run / "s2r_run" / "episodes.jsonl") if e.valid]
    assert now[: len(old)] == old
    assert [e.transitions for e in now[len(old) :]] == [e.transitions for e in met]
    assert len({e.id for e in now}) == len(now)
    logs, earlier, spent = (json.loads((run / "stages" / f"{n}.json").read_text()) for n in ("collect", "train", "sim-to-real"))
    used = earlier["probe_real_steps"] + spent["rl_real_steps"] + spent["probe_real_steps"]
    counted = json.loads((following / "results.json").read_text())["real_steps"]
    assert (counted["logs"], counted["earlier"], counted["rl"]) == (logs["real_steps"], used, 0)
    assert (following / "sft" / "model.safetensors").read_bytes() == (run / "s2r" / "model.safetensors").read_bytes()
    assert (following / "experience" / "model.safetensors").read_bytes() != (run / "experience" / "model.safetensors").read_bytes()
    found = json.loads((following / "stages" / "train-experience.json").read_text())
    assert found["new_steps"] == sum(len(e.steps) for e in met)
    assert 0 <= found["wrong_before"] <= found["new_steps"]
    opened = Run(following, load_config(following / "config.yaml"))
    annotated = list(read_episodes(following / "annotated.jsonl.xz"))
    read = lesson(opened, annotated, tasks_of(annotated), logged(opened))
    fresh = {e.id for e in now[len(old) :]}
    assert {e.id for e in read.episodes} >= fresh
    assert {e.id for e in read.mistaken} <= fresh
    assert bool(read.mistaken) == (read.wrong == found["wrong_before"] > 0)
    new, again = (sum(len(e.steps) for e in read.episodes if (e.id in fresh) == is_new) for is_new in (True, False))
    shown = new + 3 * sum(len(e.steps) for e in read.mistaken)
    assert 0.1 * shown <= again < 0.1 * shown + max(len(e.steps) for e in now)


def holds_what_was_logged_and_dreamed(run):
    """The buffer of a finished run: killed or not, each logged and each valid dreamed episode once, in its generation."""
    from dreamgym.core.files import read_episodes
    from dreamgym.replay.buffer import ReplayBuffer
    from dreamgym.replay.contract import Query
    from dreamgym.replay.upkeep import verify

    logged, dreamed = (list(read_episodes(run / name)) for name in ("logs.jsonl.xz", "policy_run/episodes.jsonl"))
    buffer = ReplayBuffer(run / "buffer", mode="ro")
    assert not verify(buffer.store)
    expected = [e.id for e in (*logged, *dreamed) if e.valid and e.steps]
    assert [e.id for e in buffer.store.episodes()] == expected
    assert len(buffer.snapshot(0).topk([Query((), "open vault", source="dream")], 1)[0]) == 0, "audits see the logs only"
    generations = {e.id: e.policy_version + 1 for e in dreamed if e.valid}
    for episode, generation in zip(buffer.store.columns["episode"], buffer.store.columns["generation"], strict=True):
        assert generations.get(buffer.store.names[episode][2:], 0) == generation
    metrics = [json.loads(line) for line in (run / "policy_run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["buffer_steps"] == len(buffer)
    assert 0 < metrics[-1]["retrieved_real"] < 1
    assert all(t.surprise is not None and t.surprise >= 0 for e in dreamed for t in e.transitions if t.reward is not None)


def test_the_whole_way_with_an_experience_model_behind_a_server(tmp_path):
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from benchmarks.loopback import LoopbackServer, from_logs
    from dreamgym.core.files import read_episodes

    run = tmp_path / "run"
    small = [*SMALL, "collect_tasks=30", "pretrain.epochs=1", "sft.fit.epochs=3", "rl.iterations=2", "rl.probe_every=0"]
    named = [*small, "experience.endpoint.server.model=m", "experience.second_opinion.verifier=examples.vault_verifier:unlocked"]
    named += ["replay.enrichment=filtered", "replay.admit.novelty=0.8", "replay.capacity=120", "replay.admit.judge.model=j"]
    servers = ("experience.endpoint.server", "replay.admit.judge")
    named += [f"{server}.price_{way}={usd}" for server in servers for way, usd in (("in", 1), ("out", 2))]

    def at(url):
        return [*named, *(f"{server}.base_url={url}" for server in servers)]

    assert dreamgym("collect", "--run", str(run), *at("http://nowhere/v1")).returncode == 0
    rubric = dict.fromkeys(("causal_consistency", "diversity", "informativeness", "hallucination"), 2)
    plays = from_logs(read_episodes(run / "logs.jsonl.xz"))

    def answers(body):
        return json.dumps({"rubric_scores": rubric}) if body["model"] == "j" else plays(body)

    with LoopbackServer(answers, faulty=0.1, kinds=("429", "500", "schema")) as server:
        done = dreamgym("quickstart", "--run", str(run), *at(server.url))
        assert done.returncode == 0, done.stdout
        calls = len(server.bodies)
    assert calls > 50
    summary = json.loads((run / "stages" / "train.json").read_text())
    assert summary["usd"] > 0
    assert summary["admission_usd"] == (summary["admission_tokens_in"] + 2 * summary["admission_tokens_out"]) / 1e6 > 0
    assert summary["experience_calls_failed"] == 0
    assert summary["rl_real_steps"] == 0
    assert not (run / "experience").exists(), "nothing is trained"
    metrics = [json.loads(line) for line in (run / "policy_run" / "metrics.jsonl").read_text().splitlines()]
    logged = sum(len(e.steps) for e in read_episodes(run / "logs.jsonl.xz"))
    assert all(m["buffer_steps"] <= logged + 120 for m in metrics)
    assert all(m["buffer_admitted"] + m["buffer_refused_known"] + m["buffer_refused_judged"] == 16 for m in metrics)
    assert metrics[-1]["buffer_evicted"] > 0
    assert json.loads((run / "results.json").read_text())["audit"]
    with LoopbackServer(from_logs(read_episodes(run / "logs.jsonl.xz"))) as server:
        attacked = dreamgym("attack", "--run", str(run), *at(server.url))  # another address of the same models goes on
        assert attacked.returncode == 0, attacked.stdout
        audited = dreamgym("audit", "--long", "--run", str(run), *at(server.url))
    assert audited.returncode == 0, audited.stdout
    assert json.loads((run / "fidelity.json").read_text())["n_policies"] == 4
    assert json.loads((run / "attacks.json").read_text())["n"] >= 200
    assert dreamgym("report", "--run", str(run)).returncode == 0
    assert "The long audit" in (run / "report.html").read_text()
