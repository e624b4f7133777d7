"""The configuration, as a file and overrides make it, and what may change in a run that has begun; runs that take what others made."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError
from dreamgym.core.files import write_episodes, write_json
from dreamgym.pipeline.config_file import dump_config, load_config
from dreamgym.pipeline.reinforce import reopen
from dreamgym.pipeline.run import LOGS, Run, stage_file
from dreamgym.pipeline.shared import FILES, share
from examples.own_environment import adapter

ROOT = Path(__file__).parents[1]


def test_an_override_opens_a_section_that_a_file_has_empty(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(load_config(None)))
    found = load_config(tmp_path / "config.yaml", ["experience.uncertainty.samples=2", "continued.run=runs/mine"])
    assert found.experience.uncertainty.samples == 2
    assert found.continued.run == str(Path("runs/mine").absolute())


def test_a_key_of_a_section_leaves_the_others_as_that_place_has_them():
    plain, found = load_config(None), load_config(None, ["sft.fit.epochs=5", "experience.fit.epochs=1", "pretrain.epochs=1"])
    assert found.sft.fit == plain.sft.fit.model_copy(update={"epochs": 5.0})
    assert found.experience.fit == plain.experience.fit.model_copy(update={"epochs": 1.0})
    assert found.pretrain == plain.pretrain.model_copy(update={"epochs": 1.0})


def test_learning_on_for_real_is_learning_as_in_the_dream_where_nothing_else_is_said():
    found = load_config(ROOT / "recipes" / "qwen2.5-7b.yaml", ["s2r.group=4"])
    assert (found.s2r.row_length, found.s2r.learning_rate, found.s2r.invalid_action_penalty) == (4608, 1e-5, 0.1)
    assert (found.s2r.group, found.rl.group) == (4, 8)
    assert (found.s2r.iterations, found.s2r.real_budget, found.s2r.probe_every) == (20, 5000, 0), "limits are its own"


def test_what_stopped_a_run_may_be_raised_and_nothing_else(tmp_path):
    real = "rl.environment=real"
    Run(tmp_path, load_config(None, [real, "rl.real_budget=100"]))
    assert Run(tmp_path, load_config(None, [real, "rl.real_budget=200"])).config.rl.real_budget == 200
    assert load_config(tmp_path / "config.yaml").rl.real_budget == 200
    (tmp_path / "logs.jsonl.xz").touch()
    raised = ["threads=1", "rl.row_length=1024", "rl.rows=2"]
    assert Run(tmp_path, load_config(None, [real, "rl.real_budget=200", *raised])).config.rl.row_length == 1024
    with pytest.raises(ConfigError, match=r"another configuration \(replay.order.mmr, rl.clip\)"):
        Run(tmp_path, load_config(None, [real, "rl.real_budget=200", "rl.clip=0.3", "replay.order.mmr=0.5"]))


@pytest.mark.parametrize(
    ("ended", "raised", "again"),
    [
        ("budget", ["rl.real_budget=200"], True),
        ("budget", ["rl.real_budget=100"], False),
        ("patience", ["rl.patience=4"], True),
        ("patience", ["rl.patience=2"], False),
        ("alarm", ["rl.watch.invalid=0.5"], True),
        ("alarm", [], False),
        ("iterations", ["rl.real_budget=200", "rl.patience=4", "rl.watch.invalid=0.5"], False),
    ],
)
def test_a_stage_that_ended_at_a_limit_goes_on_once_that_is_raised(tmp_path, ended, raised, again):
    common = ["rl.environment=real", "rl.probe_every=1", "rl.real_budget=100", "rl.patience=2"]
    first = Run(tmp_path, load_config(None, common))
    how = first.config.rl
    told = {"ended": ended, "real_budget": 100, "patience": 2, "watch": how.watch.model_dump(mode="json"), "wall_s": 1.0}
    write_json(stage_file(tmp_path, "train"), told)
    write_json(stage_file(tmp_path, "eval-policy"), {"real_success": 0.5, "wall_s": 1.0})
    run = Run(tmp_path, load_config(None, [*common, *raised]))
    reopen(run, "train")
    assert (run.done("train"), run.done("eval-policy")) == (not again, not again)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rl.environment=reel"], "rl.environment: Input should be 'dream' or 'real'"),
        (["rl.credit=turns"], "rl: .*gamma below 1"),
        (["rl.real_budget=100"], "a dream takes real steps for its probes alone"),
        (["rl.watch.dream_gap=0.1"], "watch.dream_gap needs probe_every"),
        (["curriculum.synthetic=0.005"], "0.005 of rl.tasks: 96 is no whole task"),
        (["curriculum.synthetic=0.5", "rl.advantage=gae", "rl.group=1"], "rl.group: 1 gives no task a value"),
        (["experience.teacher=endpoint"], "set experience.annotator.server"),
        (["experience.teacher=endpoint", "experience.annotator.server={base_url: x, model: m}",
          "experience.endpoint.server={base_url: x, model: m}"], "is shown logged steps and no annotations"),
        (["experience.teacher=endpoint", "experience.annotator={budget_usd: 1, server: {base_url: x, model: m}}"],
         "budget_usd needs annotator.server.price_in"),
        (["curriculum.value=progress", "experience.prompt.reasoning=false"], "progress is read from the dream's reasoning"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_a_control_takes_the_configuration_of_a_dream_as_it_is():
    mixed = ROOT / "recipes" / "textworld-mixed.yaml"
    assert load_config(mixed, ["rl.environment=real"]).rl.environment == "real"
    assert load_config(mixed, ["curriculum.value=uniform", "curriculum.synthetic=0"]).curriculum.clusters == 12
    assert load_config(mixed, ["rl.watch.dream_gap=0.1"]).s2r.watch.dream_gap == 0.1, "rl has probes, and s2r no dream"


def test_a_wrong_key_that_is_taken_over_is_told_once_and_where_it_was_given():
    with pytest.raises(ConfigError) as told:
        load_config(None, ["rl.clip=-1"])
    assert str(told.value).count("clip") == 2, "override and key"
    with pytest.raises(ConfigError, match=r"override s2r.clip=-2: s2r.clip"):
        load_config(None, ["rl.clip=0.3", "s2r.clip=-2"])


def a_finished_run(folder, *overrides):
    """What a run leaves after its warm start, with models that are empty folders."""
    run = Run(folder, load_config(ROOT / "examples" / "own_environment.yaml", list(overrides)))
    write_episodes(run.path(LOGS), adapter.collect(RealSteps(), 2, 0))
    for name in FILES:
        write_json(stage_file(folder, name), {"wall_s": 1.0})
    for model in ("base", "experience", "sft"):
        run.path(model).mkdir()
    return folder


def test_a_model_that_writes_tasks_plays_for_a_run_without_them_and_no_other_writes(tmp_path):
    config = ROOT / "examples" / "own_environment.yaml"
    writer = a_finished_run(tmp_path / "writer", "curriculum.synthetic=0.25")
    assert share(Run(tmp_path / "plain", load_config(config)), writer) == list(FILES)
    assert (tmp_path / "plain" / "experience").is_dir()
    plain = a_finished_run(tmp_path / "reader")
    assert share(Run(tmp_path / "writing", load_config(config, ["curriculum.synthetic=0.5"])), plain) == ["collect", "annotate", "base"]
    assert not (tmp_path / "writing" / "experience").exists()
    more = Run(tmp_path / "more", load_config(config, ["curriculum.synthetic=0.25", "curriculum.writing=3"]))
    assert share(more, writer) == ["collect", "annotate", "base"]


def test_what_a_run_has_made_itself_is_not_mixed_with_what_another_made_of_its_own(tmp_path):
    config = ROOT / "examples" / "own_environment.yaml"
    other = a_finished_run(tmp_path / "other")
    run = Run(tmp_path / "run", load_config(config, ["seed=1"]))
    write_episodes(run.path(LOGS), adapter.collect(RealSteps(), 2, 1))
    write_json(stage_file(run.folder, "collect"), {"wall_s": 1.0})
    assert share(run, other) == []
    assert not run.done("annotate"), "annotations of other episodes"
    half = Run(tmp_path / "half", load_config(config, ["seed=1"]))
    assert share(half, other) == ["collect", "annotate", "base", "train-experience"]
    half.forget("train-experience")
    assert share(half, other) == ["train-experience"], "what was taken from it before goes with it"


def test_a_saved_configuration_learns_for_real_as_it_is_told_to_in_the_dream(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(load_config(None, ["s2r.learning_rate=1e-5"])))
    assert load_config(saved) == load_config(None, ["s2r.learning_rate=1e-5"])
    found = load_config(saved, ["rl.advantage=gae", "rl.gae_lambda=0.95", "rl.learning_rate=3e-4"])
    assert (found.s2r.advantage, found.s2r.gae_lambda) == ("gae", 0.95)
    assert found.s2r.learning_rate == 1e-5, "what was said of s2r itself stays"
