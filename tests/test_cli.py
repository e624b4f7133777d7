"""The command line as a user meets it: one clear line per mistake, and nothing lost."""

import json
import resource
import signal
import subprocess
import sys
from collections import Counter

import pytest
from command import ENV, ROOT, SMALL, code_of, dreamgym

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")


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
    from dreamgym.pipeline.config_file import load_config
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


def test_an_audit_that_nobody_could_play_is_made_again_when_the_warm_start_is_there(tmp_path):
    from dreamgym.pipeline.config_file import load_config
    from dreamgym.pipeline.judging import audit_is_old
    from dreamgym.pipeline.run import Run

    run = Run(tmp_path, load_config(None))
    assert not audit_is_old(run)
    run.stage("audit", dict)
    run.path("audit.json").write_text(json.dumps({"episodes": 0, "policies": {}}))
    assert not audit_is_old(run), "there is still nobody"
    run.stage("warm-start", dict)
    assert audit_is_old(run)
    run.path("audit.json").write_text(json.dumps({"episodes": 6, "policies": {"expert": {}}}))
    assert not audit_is_old(run), "explorers have played; a warm start adds nothing that the dream was not told"
    run.stage("train", dict)
    assert audit_is_old(run)


def test_a_malformed_episode_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a"}\n')
    done = dreamgym("collect", "--run", str(tmp_path / "run"), f"logs={path}")
    assert done.returncode == 1
    assert f"{path}:1: field env" in done.stdout.replace("\n", "")
    assert not (tmp_path / "run" / "logs.jsonl.xz").exists()


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
    task = TASK
    return json.dumps({"id": "e", "env": "vault", "source": "real", "behaviour": "human", "stop": "won", "task": task,
                       "transitions": steps, **changes})  # fmt: skip


TASK = {"id": "vault/3", "instruction": "leave", "first_state": ["[room] door: closed"]}
BRANCH = {"state": ["[room] door: closed"], "action": "wait", "removed": [], "added": [], "reward": 0.0, "outcome": "go"}


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
        ({"transitions": steps_of(a_log(), 0, removed=["[room] gate: closed"])}, "episode f: transitions.0: "),
        ({"transitions": steps_of(a_log(), 1, state=["[room] door: ajar"])}, "field state: it is not what transitions.0 leads to"),
        ({"task": TASK | {"id": "vault/530"}}, "its task vault/530 is of the panel test"),
        ({"task": TASK | {"id": "vault/0530"}}, "field task.id: 'vault/0530' is not of the form vault/<seed>"),
        ({"task": TASK | {"instruction": "stay"}}, "'stay', but"),
        ({"task": TASK | {"first_state": []}}, "field task.first_state: the first step begins in another state"),
        ({"id": "e"}, "field id: "),
        ({"transitions": steps_of(a_log(), 1, reward=0.0)}, "step 1: field reward: 0 for a step whose outcome is won"),
        ({"branches": [{"at": 7, "transition": BRANCH}]}, "branches.0: field at: 7, but the episode has the steps 0 to 1"),
        ({"branches": [{"at": 1, "transition": BRANCH}]}, "branches.0: field state: it is not that before step 1"),
        ({"task": {"id": "vault/3", "instruction": "leave", "first_state": [], "panel": "test"}}, "belongs to the panel test"),
    ],
)
def test_a_log_that_contradicts_itself_or_the_evaluation_is_named_with_its_line(tmp_path, changes, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{a_log()}\n\n{a_log(**{'id': 'f'} | changes)}\n")
    done = dreamgym("collect", "--run", str(tmp_path / "run"), "env=examples.own_environment:adapter", "base=tiny", f"logs={path}")
    assert done.returncode == 1, done.stderr
    assert message in done.stdout.replace("\n", "")
    assert f"{path}:3" in done.stdout.replace("\n", "") or "belongs to the panel" in message
    assert not list((tmp_path / "run").glob("*logs*"))


def test_an_episode_whose_environment_failed_teaches_nothing_and_is_counted(tmp_path):
    from dreamgym.core.files import read_episodes

    path, run = tmp_path / "mine.jsonl", tmp_path / "run"
    broken = steps_of(a_log(), 0, reward=None, added=["[page] error: 503"])[:1]
    path.write_text(f"{a_log()}\n{a_log(id='f', stop='invalid_env', transitions=broken)}\n")
    done = dreamgym("collect", "--run", str(run), "env=examples.own_environment:adapter", "base=tiny", f"logs={path}")
    assert done.returncode == 0, done.stdout
    assert "1 of 2 episodes are invalid and left out (the first: f)" in done.stdout
    assert [e.id for e in read_episodes(run / "logs.jsonl.xz")] == ["e"]
    assert json.loads((run / "stages" / "collect.json").read_text())["invalid_left_out"] == 1


def test_an_evaluation_in_which_the_environment_always_failed_is_not_done(tmp_path, monkeypatch):
    from dreamgym.core.errors import DataError
    from dreamgym.pipeline.config_file import load_config
    from dreamgym.pipeline.judging import judged
    from dreamgym.pipeline.run import Run
    from dreamgym.rl.policy import Scripted
    from examples.own_environment import Vault

    def down(self, **_):
        raise OSError("the site is down")

    monkeypatch.setattr(Vault, "reset", down)
    run = Run(tmp_path, load_config(None, ["env=examples.own_environment:adapter", "evaluation.games=3"]))
    with pytest.raises(DataError, match="eval-policy: the real environment failed in each of 3 episodes"):
        run.stage("eval-policy", lambda: judged(run, "policy", Scripted(lambda *_: "look")))
    assert not run.done("eval-policy")


def test_what_the_environment_failed_in_is_evaluated_once_more_and_what_fails_again_is_invalid(tmp_path, monkeypatch):
    from dreamgym.envs.adapter import load_adapter
    from dreamgym.pipeline.config_file import load_config
    from dreamgym.pipeline.judging import judged
    from dreamgym.pipeline.run import Run
    from dreamgym.rl.policy import Scripted
    from examples.own_environment import Vault

    works, resets = Vault.reset, Counter[int]()

    def now_and_then(self, *, seed=None, options=None):
        """One game of three fails always, one the first time, one never."""
        kind = sorted(games).index(seed)
        resets[seed] += 1
        if kind == 0 or (kind == 1 and resets[seed] == 1):
            raise OSError("the site is down")
        return works(self, seed=seed, options=options)

    games = [int(t.id.split("/")[1]) for t in load_adapter("examples.own_environment:adapter").tasks("test", 3)]
    monkeypatch.setattr(Vault, "reset", now_and_then)
    run = Run(tmp_path, load_config(None, ["env=examples.own_environment:adapter", "evaluation.games=3"]))
    found = judged(run, "policy", Scripted(lambda *_: "look"))
    assert (found["played_again"], found["invalid"], found["games"]) == (2, 1, 3)


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


@pytest.mark.parametrize(
    ("module", "word", "extra"),
    [
        ("textworld", "env=textworld/easy", "textworld"),
        ("sklearn", "curriculum.clusters=4", "cluster"),
        ("bm25s", "replay.order.bm25=true", "lexical"),
        ("sentence_transformers", "replay.encoder=any", "sentence"),
        ("trl", "experience.pretrained.model=any", "sft"),
        ("openai", "evaluation.judge={base_url: 'http://nowhere/v1', model: m}", "endpoint"),
        ("openai", "experience.second_opinion.judge={base_url: 'http://nowhere/v1', model: m}", "endpoint"),
        ("wandb", "trackers=[wandb]", "wandb"),
    ],
)
def test_what_a_late_stage_needs_is_asked_for_before_the_first(tmp_path, monkeypatch, module, word, extra):
    monkeypatch.setitem(sys.modules, module, None)
    done = dreamgym("collect", "--run", str(tmp_path / "run"), "env=examples.own_environment:adapter", word)
    assert done.returncode == 1
    assert f"pip install 'dreamgym[{extra}]'" in done.stdout
    assert not (tmp_path / "run").exists()


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


def test_progress_is_told_in_lines_where_no_bar_can_move(monkeypatch, capsys):
    from dreamgym.pipeline import run

    monkeypatch.setattr(run, "SPOKEN", 0.0)
    with run.bar() as progress:
        run.fit_report(progress, "experience model")(20, 80, 0.5)
        task = progress.add_task("recording episodes", total=None)
        progress.advance(task)
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert first.startswith("  experience model loss 0.500: 20/80 after ")
    assert second.startswith("  recording episodes: 1 after ")
    monkeypatch.setattr(run, "SPOKEN", 30.0)
    with run.bar() as progress:
        run.fit_report(progress, "experience model")(20, 80, 0.5)
    assert "20/80" not in capsys.readouterr().out, "not at every step"
