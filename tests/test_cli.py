"""The command line as a user meets it: one clear line per mistake, a whole small run, kill and resume."""

import ast
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ENV, ROOT, SMALL, dreamgym

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")


def level_keys() -> set[str]:
    """The keys that ``benchmarks/tables.py`` writes for each level."""
    tree = ast.parse((Path(__file__).parents[1] / "benchmarks" / "tables.py").read_text())
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "level_result")
    written = next(n.value for n in function.body if isinstance(n, ast.Return))
    assert isinstance(written, ast.Dict)
    return {k.value for k in written.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config", "rl.iteratons=3"], "unknown key rl.iteratons; did you mean iterations?"),
        (["config", "rl.iterations=many"], "override rl.iterations=many: rl.iterations"),
        (["config", "--config", "examples/own_environment.yaml", "rl.clp=1"], "override rl.clp=1: unknown key rl.clp; did you mean clip?"),
        (["train", "--from", "nowhere"], "nowhere/config.yaml: cannot be read"),
        (["config", "rl"], "has no '='"),
        (["config", "base=["], "override 'base=[': the value is not YAML"),
        (
            ["config", "experience.pretrained.model=m", "experience.endpoint.server={base_url: u, model: m}"],
            "either endpoint or pretrained",
        ),
        (["config", "experience.annotator.server={base_url: u, model: m}"], "annotator needs teacher: endpoint"),
        (["config", "evaluation.panel=train"], "evaluation.panel: Input should be 'probe', 'test' or 'unseen'"),
        (["config", "--config", "examples/own_environment.yaml", "rl.iterations=0"], None),
        (["config", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["config", "--config", "tests/twice.yaml"], "the key 'rows' is given twice"),
        (["collect", "env=textworld/harder"], "no level 'harder'"),
        (["collect", "env=examples.own_environment:adapter", "base=tiny"], "logs: none are shipped for examples.own_environment:adapter"),
        (["collect", "env=nosuch:thing"], "cannot be imported"),
        (["collect", "logs=missing.jsonl"], "missing.jsonl: no such file"),
        (["collect", "env=examples.own_environment:adapter"], "base: none is shipped for examples.own_environment:adapter"),
        (["eval"], "stage train has not finished"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, words, message):
    run = [] if words[0] == "config" else ["--run", str(tmp_path / "run")]
    done = dreamgym(*words, *run)
    if message is None:
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stdout.strip().splitlines()) <= 3
    assert (tmp_path / "run").exists() == (words[0] == "collect"), "a mistyped folder is not made"


def test_an_audit_that_measured_nothing_refuses_no_training(tmp_path, capsys):
    from dreamgym.core.errors import ConfigError
    from dreamgym.pipeline.config import load_config
    from dreamgym.pipeline.reinforce import check_audit
    from dreamgym.pipeline.run import Run

    run = Run(tmp_path, load_config(None))
    figures = {"episodes": 0, "successes": 0, "success_precision": 0.0, "next_state_macro": 0.0}
    run.path("audit.json").write_text(json.dumps(figures))
    check_audit(run)
    assert "says nothing about this dream" in capsys.readouterr().out
    run.path("audit.json").write_text(json.dumps(figures | {"episodes": 6, "next_state_macro": 0.9}))
    check_audit(run)
    assert "nobody won a real episode" in capsys.readouterr().out
    run.path("audit.json").write_text(json.dumps(figures | {"episodes": 6, "next_state_macro": 0.5}))
    with pytest.raises(ConfigError, match=r"next_state_macro 0\.500 below rl\.audit_floor"):
        check_audit(run)


def test_a_malformed_episode_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a"}\n')
    done = dreamgym("collect", "--run", str(tmp_path / "run"), f"logs={path}")
    assert done.returncode == 1
    assert f"{path}:1: field env" in done.stdout.replace("\n", "")
    assert not (tmp_path / "run" / "logs.jsonl.xz").exists()


def code_of(page: str, word: str) -> str:
    """The block of Python on a page that has ``word`` in it."""
    blocks = (ROOT / "docs" / page).read_text().split("```python\n")[1:]
    [found] = [code for code in (b.partition("```")[0] for b in blocks) if word in code]
    return found


def test_the_converter_in_the_docs_makes_logs_that_are_taken(tmp_path):
    from dreamgym.core.env import RealSteps
    from dreamgym.core.state import text_of_state
    from dreamgym.pipeline.user_logs import read_user_logs
    from examples.own_environment import adapter

    made: dict[str, object] = {}
    exec(code_of("own-environment.md", "def episode("), made)
    recorded = [e for e in adapter.collect(RealSteps(), 6, 0) if e.transitions]
    lines = []
    for e in recorded:
        steps = [(text_of_state(t.state), t.action, t.reward, text_of_state(t.next_state), t.outcome != "go") for t in e.transitions]
        seed = int(e.task.id.rpartition("/")[2])
        lines.append(made["episode_line"](made["episode"](adapter.name, seed, e.task.instruction, steps, e.id)))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    taken = read_user_logs(tmp_path / "mine.jsonl", dict)
    assert [e.transitions for e in taken] == [e.transitions for e in recorded]
    assert [e.task.id for e in taken] == [e.task.id for e in recorded]
    assert {e.stop for e in taken} >= {"won", "lost"}


def a_log(**changes) -> str:
    """One line of a user's log: two steps, the second wins. ``changes`` go over its fields."""
    there, here = "[room] door: closed", "[room] door: open"
    steps = [
        {"state": [there], "action": "open door", "removed": [there], "added": [here], "reward": 0.0, "outcome": "go"},
        {"state": [here], "action": "leave", "removed": [], "added": [], "reward": 1.0, "outcome": "won"},
    ]
    task = {"id": "vault/3", "instruction": "leave", "first_state": [there]}
    return json.dumps({"id": "e", "env": "vault", "source": "real", "behaviour": "human", "stop": "won", "task": task,
                       "transitions": steps, **changes})  # fmt: skip


def steps_of(log: str, number: int, **changes) -> list[dict[str, object]]:
    steps = json.loads(log)["transitions"]
    steps[number].update(changes)
    return steps


def test_a_file_that_is_not_sound_is_told_before_games_are_built(tmp_path):
    from dreamgym.core.errors import DataError
    from dreamgym.pipeline.user_logs import read_user_logs

    torn = tmp_path / "torn.jsonl"
    torn.write_text(f"{a_log()}\n{a_log(stop='lost')}\n")
    for path, message in ((tmp_path / "none.jsonl", "no such file"), (torn, "torn.jsonl:2")):
        with pytest.raises(DataError, match=message):
            read_user_logs(path, lambda: pytest.fail("the panels were asked for"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": "lost"}, "field stop: lost, but the last step's outcome is won"),
        ({"transitions": steps_of(a_log(), 1, outcome="go")}, "field stop: won, but the last step's outcome is go"),
        ({"transitions": steps_of(a_log(), 0, removed=["[room] gate: closed"])}, "episode e: transitions.0: "),
        ({"task": {"id": "vault/530", "instruction": "leave", "first_state": []}}, "its task vault/530 is of the panel test"),
        ({"task": {"id": "vault/3", "instruction": "leave", "first_state": [], "panel": "test"}}, "belongs to the panel test"),
    ],
)
def test_a_log_that_contradicts_itself_or_the_evaluation_is_named_with_its_line(tmp_path, changes, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{a_log()}\n\n{a_log(**changes)}\n")
    done = dreamgym("collect", "--run", str(tmp_path / "run"), "env=examples.own_environment:adapter", "base=tiny", f"logs={path}")
    assert done.returncode == 1, done.stderr
    assert message in done.stdout.replace("\n", "")
    assert f"{path}:3" in done.stdout.replace("\n", "") or "belongs to the panel" in message
    assert not list((tmp_path / "run").glob("*logs*"))


def test_a_users_states_are_put_in_order(tmp_path):
    from dreamgym.core.files import read_episodes

    path, run = tmp_path / "mine.jsonl", tmp_path / "run"
    lines = ["[room] mat: here", "[box] key: metal"]
    path.write_text(a_log(task={"id": "vault/3", "instruction": "leave", "first_state": lines},
                          transitions=[{"state": lines, "action": "leave", "reward": 1.0, "outcome": "won"}]))  # fmt: skip
    assert dreamgym("collect", "--run", str(run), "env=examples.own_environment:adapter", "base=tiny", f"logs={path}").returncode == 0
    [episode] = read_episodes(run / "logs.jsonl.xz")
    assert episode.task.first_state == episode.transitions[0].state == tuple(sorted(lines))


def test_a_model_that_cannot_be_written_is_one_line(tmp_path):
    from safetensors.torch import save_file

    from dreamgym.core.errors import DataError
    from dreamgym.pipeline.config import RunConfig
    from dreamgym.pipeline.run import Run

    run = Run(tmp_path / "run", RunConfig())
    weights = {"w": torch.zeros(200_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for write in (lambda: save_file(weights, run.path("m.safetensors")), lambda: torch.save(weights, run.path("m.pt"))):
            with pytest.raises(DataError, match=r"run: a model cannot be written .* is the disk full"):
                run.stage("train", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not run.done("train")


def test_a_prompt_longer_than_a_row_names_the_key(tmp_path):
    from dreamgym.core.errors import ConfigError
    from dreamgym.lm.packing import Segment, Tree, pack
    from dreamgym.pipeline.config import RunConfig
    from dreamgym.pipeline.run import Run

    with pytest.raises(ConfigError, match=r"warm-start: .* 9 tokens, a row 8; raise row_length"):
        Run(tmp_path, RunConfig()).stage("warm-start", lambda: pack([Tree((1,) * 6, (Segment((2,) * 3, 1),))], 8))


def test_a_checkpoint_that_a_kill_left_unfinished_is_dropped(tmp_path):
    from dreamgym.pipeline.run import drop_torn_checkpoints

    for name, files in (("checkpoint-50", ["model.safetensors", "trainer_state.json"]), ("checkpoint-100", ["model.safetensors"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("x")
    drop_torn_checkpoints(tmp_path)
    drop_torn_checkpoints(tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-50"]


def test_so_is_one_of_a_training_in_two_parts(tmp_path):
    from dreamgym.pipeline.run import drop_torn_checkpoints

    for name in ("texts/checkpoint-50", "questions/checkpoint-50", "questions/checkpoint-100"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_text("x")
        if name != "questions/checkpoint-100":
            (tmp_path / name / "trainer_state.json").write_text("x")
    drop_torn_checkpoints(tmp_path)
    kept = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("trainer_state.json"))
    assert kept == ["questions/checkpoint-50", "texts/checkpoint-50"]
    assert not (tmp_path / "questions/checkpoint-100").exists()


def test_a_demonstration_too_long_for_a_policy_is_refused(tmp_path):
    from dreamgym.core.errors import ConfigError
    from dreamgym.pipeline.stages import _check_actions, shipped
    from dreamgym.pipeline.user_logs import read_user_logs

    path = tmp_path / "mine.jsonl"
    from dreamgym.pipeline.config import RunConfig

    path.write_text(a_log())
    base = str(shipped("base"))
    _check_actions(base, read_user_logs(path, dict), RunConfig())
    path.write_text(a_log(transitions=steps_of(a_log(), 0, action="search red shirt of size medium under 30 dollars with long sleeves")))
    with pytest.raises(ConfigError, match=r"'search red shirt .* raise policy.tokens from 12"):
        _check_actions(base, read_user_logs(path, dict), RunConfig())


def test_another_configuration_does_not_overwrite_a_run(tmp_path):
    words = ["collect", "--run", str(tmp_path / "run"), *SMALL, "collect_tasks=2"]
    assert dreamgym(*words, "logs=none.jsonl").returncode == 1
    assert dreamgym(*words).returncode == 0, "nothing was finished under the other one"
    done = dreamgym(*words, "seed=2")
    assert done.returncode == 1
    assert "another configuration" in done.stdout


def test_a_missing_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from dreamgym.cli import main\n"
        "sys.argv = ['dreamgym', 'collect', '--run', sys.argv[1]]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 1
    assert "pip install 'dreamgym[train]'" in done.stdout


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    run = tmp_path / "run"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1600, 1600)); from dreamgym.cli import main\n"
        "sys.argv = ['dreamgym', 'collect', *sys.argv[1:]]; main()"
    )
    words = ["--run", str(run), *SMALL]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stdout
    assert "Traceback" not in done.stderr
    assert not (run / "stages" / "collect.json").exists()
    assert dreamgym("collect", *words).returncode == 0


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
    from dreamgym.pipeline.config import load_config
    from dreamgym.pipeline.continued import lesson
    from dreamgym.pipeline.grounding import logged
    from dreamgym.pipeline.logs import tasks_of
    from dreamgym.pipeline.run import Run

    words = ["--run", str(following), "--config", str(run / "config.yaml"), f"continued.run={run}", "continued.rehearsal=0.1"]
    other = dreamgym("train", *words)
    assert other.returncode == 1
    assert "so the same tasks would come first; give another one" in other.stdout.replace("\n", " ")
    words += ["seed=1", "experience.fit.epochs=1", "rl.iterations=1", "rl.audit_floor=0", "evaluation.audit_games=1"]
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
    named += ["replay.enrichment=filtered", "replay.admit.novelty=0.8", "replay.capacity=120"]
    assert dreamgym("collect", "--run", str(run), *named, "experience.endpoint.server.base_url=http://nowhere/v1").returncode == 0
    with LoopbackServer(from_logs(read_episodes(run / "logs.jsonl.xz")), faulty=0.1, kinds=("429", "500", "schema")) as server:
        words = [*named, f"experience.endpoint.server.base_url={server.url}"]
        words += ["experience.endpoint.server.price_in=1", "experience.endpoint.server.price_out=2"]
        done = dreamgym("quickstart", "--run", str(run), *words)
        assert done.returncode == 0, done.stdout
        calls = len(server.bodies)
    assert calls > 50
    summary = json.loads((run / "stages" / "train.json").read_text())
    assert summary["usd"] > 0
    assert summary["experience_calls_failed"] == 0
    assert summary["rl_real_steps"] == 0
    assert not (run / "experience").exists(), "nothing is trained"
    metrics = [json.loads(line) for line in (run / "policy_run" / "metrics.jsonl").read_text().splitlines()]
    logged = sum(len(e.steps) for e in read_episodes(run / "logs.jsonl.xz"))
    assert all(m["buffer_steps"] <= logged + 120 for m in metrics)
    assert all(m["buffer_admitted"] + m["buffer_refused_known"] == 16 for m in metrics)
    assert metrics[-1]["buffer_evicted"] > 0
    assert json.loads((run / "results.json").read_text())["audit"]
    with LoopbackServer(from_logs(read_episodes(run / "logs.jsonl.xz"))) as server:
        words[-3] = f"experience.endpoint.server.base_url={server.url}"  # another address of the same model goes on
        attacked = dreamgym("attack", "--run", str(run), *words)
        assert attacked.returncode == 0, attacked.stdout
        audited = dreamgym("audit", "--long", "--run", str(run), *words)
    assert audited.returncode == 0, audited.stdout
    assert json.loads((run / "fidelity.json").read_text())["n_policies"] == 4
    assert json.loads((run / "attacks.json").read_text())["n"] >= 200
    assert dreamgym("report", "--run", str(run)).returncode == 0
    assert "The long audit" in (run / "report.html").read_text()


def test_logs_are_annotated_by_an_llm_whose_cost_is_told_first(tmp_path):
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from benchmarks.loopback import LoopbackServer

    def lesson(body):
        steps = body["messages"][-1]["content"].count('"step_id"')
        plans = [{"step_id": i, "transition_plan": "it works"} for i in range(steps)]
        tutorial = {"Overall Plan": "p", "Success Mode": "s", "Failure Mode": "f"}
        return json.dumps({"task_tutorial": tutorial, "state_transitions": plans})

    (tmp_path / "mine.jsonl").write_text("".join(a_log(id=f"e{i}") + "\n" for i in range(5)))
    words = ["annotate", "--run", str(tmp_path / "run"), "env=examples.own_environment:adapter", f"logs={tmp_path / 'mine.jsonl'}"]
    words += ["base=tiny", "experience.teacher=endpoint"]
    done = dreamgym(*words)
    assert done.returncode == 1
    assert "experience.annotator.server" in done.stdout
    with LoopbackServer(lesson) as server:
        served = [f"experience.annotator.server.base_url={server.url}", "experience.annotator.server.model=m"]
        prices = ["experience.annotator.server.price_in=1", "experience.annotator.server.price_out=1"]
        done = dreamgym(*words[:2], str(tmp_path / "other"), *words[3:], *served, *prices)
    assert done.returncode == 0, done.stdout
    assert "5 episodes, 10 steps: about" in done.stdout
    assert "out, about $0.0" in done.stdout
    found = json.loads((tmp_path / "other" / "stages" / "annotate.json").read_text())
    assert (found["annotated"], found["quarantined"], found["reasoning_words"]) == (5, 0, 20)
