"""What a run takes over from the one that it continues, and what it refuses. The whole way with models is in ``test_whole_runs.py``."""

import json

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from dreamgym.core.env import RealSteps
from dreamgym.core.errors import ConfigError, DataError, PanelLeakError
from dreamgym.core.files import episode_line, read_episodes, write_episodes
from dreamgym.core.types import StopReason
from dreamgym.experience.teach import ANNOTATIONS
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.continued import take_annotations, take_policy
from dreamgym.pipeline.run import LOGS, Run
from dreamgym.pipeline.stages import collect
from examples.own_environment import adapter

OWN = ["env=examples.own_environment:adapter", "logs=collect", "base=tiny"]
S2R = {"rl_real_steps": 30, "probe_real_steps": 7}


@pytest.fixture(scope="module")
def recorded():
    return list(adapter.collect(RealSteps(), 12, 0))


def finished(folder, logs, met, *, work="s2r_run", keys=(), **stages):
    """A run's folder as its stages leave it: ``met`` is what its policy learned from in ``work``."""
    run = Run(folder, load_config(None, [*OWN, *keys]))
    write_episodes(run.path(LOGS), logs)
    done = {"collect": {"real_steps": 100}, "train": {"rl_real_steps": 0, "probe_real_steps": 5}} | stages
    if met:
        run.path(work).mkdir()
        run.path(work).joinpath("episodes.jsonl").write_text("".join(episode_line(e) + "\n" for e in met))
    for name in ("policy", "s2r"):
        run.path(name).mkdir()
        run.path(name).joinpath("model.safetensors").write_bytes(name.encode() * 9)
    run.path("stages").mkdir()
    for name, summary in done.items():
        run.path(f"stages/{name}.json").write_text(json.dumps(summary))
    return run


def following(tmp_path, *keys, name="next", of="mine"):
    run = Run(tmp_path / name, load_config(None, [*OWN, "seed=1", f"continued.run={tmp_path / of}", *keys]))
    return run, lambda: run.stage("collect", lambda: collect(run))


def test_it_has_the_logs_and_what_was_learned_from_under_names_of_its_own(tmp_path, recorded):
    logs, met = recorded[:-8], recorded[-8:]
    broken = met[0].model_copy(update={"stop": StopReason.INVALID_ENV, "id": "broken"})
    same = met[1].model_copy(update={"id": logs[0].id})
    mine = finished(tmp_path / "mine", logs, [*met, broken, same], **{"sim-to-real": S2R})
    mine.path(ANNOTATIONS).write_text("what an LLM said")
    run, take = following(tmp_path)
    found = take()
    now = list(read_episodes(run.path(LOGS)))
    assert [e.id for e in now] == [*(e.id for e in logs), *(e.id for e in met), logs[0].id + "'"]
    assert now[-1].transitions == same.transitions
    assert found["new"] == [e.id for e in now[len(logs) :]]
    assert (found["real_steps"], found["earlier_real_steps"]) == (100, 5 + 30 + 7), "recorded; learned and probed"
    take_annotations(run)
    assert run.path(ANNOTATIONS).read_text() == "what an LLM said"
    take_policy(run, run.path("sft"))
    assert run.path("sft/model.safetensors").read_bytes() == b"s2r" * 9
    mine.path("s2r/model.safetensors").write_bytes(b"learned on")
    with pytest.raises(DataError, match="it has learned on since"):
        take_policy(run, run.path("sft"))


def test_a_chain_of_runs_adds_up_and_a_control_counts_as_learning(tmp_path, recorded):
    earlier = {"collect": {"real_steps": 100, "earlier_real_steps": 42}, "train": {"rl_real_steps": 60, "probe_real_steps": 0}}
    finished(tmp_path / "mine", recorded[:-8], recorded[-8:], work="policy_run", keys=["rl.environment=real"], **earlier)
    run, take = following(tmp_path, "rl.environment=real")
    found = take()
    assert found["new_episodes"] == 8
    assert found["earlier_real_steps"] == 42 + 60
    take_policy(run, run.path("sft"))
    assert run.path("sft/model.safetensors").read_bytes() == b"policy" * 9


def test_what_this_run_evaluates_on_is_not_learned_from_though_the_other_did_not(tmp_path, recorded):
    test = adapter.tasks("test", 150)[0].id
    moved = recorded[-1].model_copy(update={"task": recorded[-1].task.model_copy(update={"id": test}), "id": "moved"})
    finished(tmp_path / "mine", [*recorded[:-8], moved], recorded[-8:], **{"sim-to-real": S2R})
    run, take = following(tmp_path)
    with pytest.raises(PanelLeakError, match=f"{test} is of the panel test"):
        take()
    assert not run.path(LOGS).exists()


@pytest.mark.parametrize(
    ("keys", "stages", "message"),
    [
        (["seed=0"], {"sim-to-real": S2R}, "seed: .* has 0 too"),
        (["policy.tokens=13"], {"sim-to-real": S2R}, "policy is another one"),
        (["experience.teacher=generic"], {"sim-to-real": S2R}, r"experience\.teacher is another one"),
        (["sft.method=self_reflection"], {"sim-to-real": S2R}, r"sft\.method is another one"),
        (["experience.prompt.k=2"], {"sim-to-real": S2R}, r"experience\.prompt is another one"),
        (["curriculum.synthetic=0.25"], {"sim-to-real": S2R}, "has not learned to write tasks"),
        ([], {}, "the stage sim-to-real has not finished"),
        (["continued.run=nowhere"], {"sim-to-real": S2R}, "nowhere is no run directory"),
    ],
)
def test_what_cannot_be_continued_is_refused_and_corrected_in_the_same_folder(tmp_path, recorded, keys, stages, message):
    finished(tmp_path / "mine", recorded[:-8], recorded[-8:], **stages)
    _, take = following(tmp_path, *keys)
    with pytest.raises(ConfigError, match=message):
        take()
    if stages:
        _, take = following(tmp_path)
        assert take()["new_episodes"] == 8


def test_a_run_without_real_learning_and_the_run_itself_are_refused(tmp_path, recorded):
    finished(tmp_path / "mine", recorded, [])
    with pytest.raises(DataError, match="learned nothing in the real environment yet; run: dreamgym train"):
        following(tmp_path)[1]()
    with pytest.raises(ConfigError, match="is this run itself"):
        following(tmp_path, name="itself", of="itself")[1]()
    with pytest.raises(ConfigError, match="for a local experience model"):
        load_config(None, ["continued.run=x", "continued.mistakes=2", "experience.endpoint.server={base_url: u, model: m}"])
