"""A run of policy learning ends where it should, by name, with its state saved, whatever its policy or dream say; its horizon grows."""

import json
import resource
import signal
import zlib

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from vault_model import VaultModel  # noqa: E402

from dreamgym.core.env import AHEAD, RealSteps  # noqa: E402
from dreamgym.core.errors import ConfigError, TrainingError  # noqa: E402
from dreamgym.core.files import read_episodes  # noqa: E402
from dreamgym.core.types import StopReason, Task  # noqa: E402
from dreamgym.experience.model import Prediction  # noqa: E402
from dreamgym.lm.fit import FitConfig  # noqa: E402
from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.tiny import tiny_llama, train_tokenizer  # noqa: E402
from dreamgym.pipeline import rl_run  # noqa: E402
from dreamgym.pipeline.config import Reinforcement  # noqa: E402
from dreamgym.pipeline.config_file import load_config  # noqa: E402
from dreamgym.pipeline.learn import demonstration_trees, warm_start  # noqa: E402
from dreamgym.pipeline.logs import tasks_of  # noqa: E402
from dreamgym.pipeline.reinforce import check_budget, check_kinds, check_learning, sim_to_real  # noqa: E402
from dreamgym.pipeline.rl_run import RLRun  # noqa: E402
from dreamgym.pipeline.run import Run  # noqa: E402
from dreamgym.rl.config import RLConfig  # noqa: E402
from dreamgym.rl.context import StateContext  # noqa: E402
from dreamgym.rl.monitors import MEANING, Limits, alarms  # noqa: E402
from examples.own_environment import adapter  # noqa: E402

SMALL = {"tasks": 3, "group": 4, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Episodes of the vault, and a warm start on those that won."""
    folder = tmp_path_factory.mktemp("vault")
    episodes = list(adapter.collect(RealSteps(), 40, 0))
    demos = [e for e in episodes if e.behaviour == "expert" and e.stop == StopReason.WON]
    texts = [" ".join((e.task.instruction, *t.state, *t.added, t.action)) for e in episodes for t in e.transitions]
    tokenizer = train_tokenizer(texts, 400)
    LocalLM(tiny_llama(len(tokenizer), 0, width=64, layers=2), tokenizer).save(folder / "base")
    warm_start(folder / "base", demos, FitConfig(learning_rate=3e-3, epochs=60, row_length=256, rows=4), folder / "sft")
    assert demonstration_trees(LocalLM.load(folder / "sft"), demos, StateContext())
    return episodes, folder / "sft"


def a_run(logged, folder, keys, model=None, budget=None, clusters=None):
    torch.set_num_threads(1)
    episodes, start = logged
    return RLRun(start, RLConfig(**SMALL | keys), tasks_of(episodes), adapter, folder, model, None, RealSteps(budget), clusters=clusters)


@pytest.mark.parametrize(("advantage", "together"), [("gae", True), ("group", False), ("leave_one_out", False)])
def test_a_cluster_is_one_group_for_ppo_only(logged, tmp_path, advantage, together):
    first, second, *_ = names = sorted(tasks_of(logged[0]))
    sampler = a_run(logged, tmp_path, {"advantage": advantage, "iterations": 1}, clusters=dict.fromkeys(names, 0)).sampler
    sampler.observe(first, [1.0, 1.0])
    sampler.observe(second, [0.0, 0.0])
    assert (sampler.values()[second]["value"] > 0) is together, "half of the cluster's rewards are successes, none of the task's own"


def test_a_real_budget_is_never_exceeded_and_a_raised_one_goes_on(logged, tmp_path):
    for budget in (40, 100, 333):
        run = a_run(logged, tmp_path, {"iterations": 50}, budget=budget)
        before = run.iteration
        told = []
        policy = run.run(told.append)
        assert run.ended == "budget"
        assert run.counter.total <= budget
        assert run.iteration == before + len(told)
        written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [m["iteration"] for m in written] == list(range(run.iteration))
        assert policy.parameters == run.lm.parameters
    assert run.iteration > 2
    assert run.counter.total > 333 * 0.7, "fewer tasks at the end, so that little is left unused"
    assert {m["episodes"] for m in written} >= {12.0}


def test_a_budget_that_ends_inside_an_iteration_is_counted_and_kept(logged, tmp_path, monkeypatch):
    run = a_run(logged, tmp_path, {"iterations": 5}, budget=30)
    monkeypatch.setattr(run, "_affordable", lambda probed: 3)
    run.run(lambda m: None)
    assert run.ended == "budget"
    assert run.counter.total == 30
    assert run.iteration == 0, "half an iteration teaches nothing"
    again = a_run(logged, tmp_path, {"iterations": 5}, budget=30)
    assert again.counter.total == 30, "what it used stays used"


def test_the_learning_rate_falls_with_the_budget(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 1000, "warmup": 0}, budget=400)
    rates = []
    run.run(lambda m: rates.append((run.trainer.learning_rate(), run.counter.total)))
    assert run.ended == "budget"
    assert len(rates) > 2
    peak, used = run.config.learning_rate, [0, *(n for _, n in rates)]
    assert [rate for rate, _ in rates] == pytest.approx([peak * (1 - n / 400) for n in used[:-1]], rel=0.01)


def test_after_the_dream_the_start_is_probed_and_kept_where_nothing_is_better(logged, tmp_path, monkeypatch):
    import dreamgym.pipeline.rl_run as module

    told = {"rates": [0.75, 0.5, 0.25]}
    monkeypatch.setattr(module, "real_rate", lambda played: told["rates"].pop(0))
    run = a_run(logged, tmp_path, {"iterations": 1000}, budget=500)
    kept = run.run(lambda m: None, adapter.tasks("probe", 4), every=3, first=True)
    assert [p["iteration"] for p in run.probe] == [0, 3, run.iteration], "the start, every third, and what the budget left"
    assert run.ended == "budget"
    assert run.iteration in (4, 5)
    assert run.counter.total <= 500
    start = LocalLM.load(logged[1])
    assert all(torch.equal(a, b) for a, b in zip(kept.model.parameters(), start.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(run.lm.model.parameters(), start.model.parameters(), strict=True))


def test_a_budget_holds_a_probe_back_that_is_as_long_as_episodes_are(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 5, "tasks": 8}, budget=400)
    cap = adapter.cap
    assert run._affordable(30) == int((400 - 30 * (cap + 1)) / (4 * cap)), "nothing is known: the longest"
    run.trainer.progress.metrics.append({"steps": 2.0})
    run.trainer.progress.iteration = 1
    assert run._affordable(30) == 8, "two steps and a reset each: 135 of 400 are held back, 12 an episode group"
    run.counter.budget = 135 + 5 * 12
    assert run._affordable(30) == 5
    run.trainer.progress.metrics.append({"steps": float(cap)})
    run.counter.budget = 5 * 4 * (cap + 1) - 1
    assert run._affordable(0) == 4, "five groups at the cap, with their resets, would take a step more than there is"


def test_a_budget_that_probes_would_eat_is_refused():
    check_budget("rl", Reinforcement(real_budget=101, probe_every=1), 100)
    check_budget("rl", Reinforcement(probe_every=1), 100)
    check_budget("rl", Reinforcement(real_budget=5), 0)
    with pytest.raises(ConfigError, match=r"s2r\.real_budget: 100 does not bear a probe, which may take 100 real steps"):
        check_budget("s2r", Reinforcement(real_budget=100, probe_every=1), 100)


def test_what_policy_learning_would_refuse_is_refused_before_anything_is_trained(tmp_path):
    steps = len(adapter.tasks("probe", 50)) * (adapter.cap + 1)
    words = ["env=examples.own_environment:adapter", "s2r.probe_every=1"]
    check_learning(load_config(None, [*words, f"s2r.real_budget={steps + 1}"]), "rl", "s2r")
    config = load_config(None, [*words, f"s2r.real_budget={steps}"])
    check_learning(config, "rl")
    with pytest.raises(ConfigError, match=rf"s2r\.real_budget: {steps} does not bear a probe"):
        check_learning(config, "rl", "s2r")
    with pytest.raises(ConfigError, match=r"the adapter vault has no achieved"):
        check_learning(load_config(None, [*words, "curriculum.hindsight=true", "curriculum.synthetic=0.5"]), "rl")
    with pytest.raises(ConfigError, match=rf"s2r\.real_budget: {steps} does not bear a probe"):
        sim_to_real(Run(tmp_path, config))  # who calls the stages from Python is told too


def weights_of(folder) -> list[torch.Tensor]:
    return list(LocalLM.load(folder).model.parameters())


def test_kinds_are_normalised_where_there_are_several():
    tasks = [Task(id=f"t/{i}", instruction="x", first_state=(), difficulty=d) for i, d in enumerate(("", "", "hard"))]
    check_kinds(Reinforcement(normalise="kind"), tasks, "mine")
    check_kinds(Reinforcement(), tasks[:2], "mine")
    with pytest.raises(ConfigError, match="all logged tasks of mine are of one kind"):
        check_kinds(Reinforcement(normalise="kind"), tasks[:2], "mine")


def test_the_policy_that_probes_chose_is_that_of_a_finished_iteration_whenever_it_is_killed(logged, tmp_path, monkeypatch):
    def improving(self, *_):
        return len(self.probe) / 10

    monkeypatch.setattr(rl_run, "play_real", lambda *_: [])
    run = a_run(logged, tmp_path, {"iterations": 3, "learning_rate": 1e-2}, VaultModel())
    monkeypatch.setattr(rl_run, "real_rate", lambda _: improving(run))
    save, told = run._save, []

    def killed():
        if run.iteration == 2:
            raise KeyboardInterrupt
        save()

    monkeypatch.setattr(run, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run(told.append, adapter.tasks("probe", 2), 1)
    first = weights_of(tmp_path / "policy")
    assert all(torch.equal(a, b) for a, b in zip(first, weights_of(tmp_path / "checkpoint"), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights_of(tmp_path / rl_run.CHOSEN), strict=True)), "better, not yet its own"

    run = a_run(logged, tmp_path, {"iterations": 3, "learning_rate": 1e-2}, VaultModel())
    assert run.iteration == 1
    assert not (tmp_path / rl_run.CHOSEN).exists()
    assert all(torch.equal(a, b) for a, b in zip(first, weights_of(tmp_path / "policy"), strict=True))
    with monkeypatch.context() as between:
        between.setattr(run, "_settle", lambda: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            run.run(told.append, adapter.tasks("probe", 2), 1)
    second = weights_of(tmp_path / rl_run.CHOSEN)

    run = a_run(logged, tmp_path, {"iterations": 3, "learning_rate": 1e-2}, VaultModel())
    assert run.iteration == 2
    assert all(torch.equal(a, b) for a, b in zip(second, weights_of(tmp_path / "policy"), strict=True)), "the checkpoint knows of it"
    run.run(told.append, adapter.tasks("probe", 2), 1)
    assert all(torch.equal(a, b) for a, b in zip(run.lm.model.parameters(), weights_of(tmp_path / "policy"), strict=True))


def test_a_full_disk_tears_no_checkpoint_and_the_run_goes_on_as_if_nothing_had_been(logged, tmp_path):
    def told(run):
        metrics = []
        run.run(lambda m: metrics.append({k: v for k, v in m.items() if not k.endswith("_s")}))
        return metrics

    whole = a_run(logged, tmp_path / "whole", {"iterations": 3}, VaultModel())
    wanted = told(whole)
    first = a_run(logged, tmp_path / "torn", {"iterations": 3}, VaultModel())
    done, before, ignored = [], resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full(metrics):
        done.append(metrics)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # no weights fit any more

    try:
        with pytest.raises(Exception, match=r"File too large|os error 27|PytorchStreamWriter"):
            first.run(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(done) == 1
    again = a_run(logged, tmp_path / "torn", {"iterations": 3}, VaultModel())
    assert again.iteration == 1, "what was finished is kept"
    assert told(again) == wanted[1:]
    assert all(torch.equal(a, b) for a, b in zip(again.lm.model.parameters(), whole.lm.model.parameters(), strict=True))


def test_a_run_that_was_killed_after_the_first_probe_does_not_probe_again(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 2})
    run._probe_alone(adapter.tasks("probe", 2), 0.4)
    took = run.counter.total
    again = a_run(logged, tmp_path, {"iterations": 2})
    again.run(lambda m: None, adapter.tasks("probe", 2), every=5, first=True)
    assert [p["iteration"] for p in again.probe] == [0, 2]
    assert again.probe[0]["probe_steps"] == took


@pytest.mark.parametrize("failure", [TrainingError("torn"), KeyboardInterrupt()])
def test_steps_of_an_iteration_that_was_cut_off_stay_counted(logged, tmp_path, monkeypatch, failure):
    run = a_run(logged, tmp_path, {"iterations": 5}, budget=500)
    played = run.trainer.play

    def torn(seats):
        played(seats)
        raise failure

    run.trainer.play = torn
    with pytest.raises(type(failure)):
        run.run(lambda m: None)
    taken = run.counter.total
    assert taken > 20
    again = a_run(logged, tmp_path, {"iterations": 5}, budget=500)
    assert taken <= again.counter.total <= taken + AHEAD
    again.run(lambda m: None)
    assert again.counter.total <= 500
    low = a_run(logged, tmp_path, {"iterations": 9}, budget=20)
    low.run(lambda m: None)
    assert low.ended == "budget", "a lowered budget bears nothing"


def test_a_probe_without_a_valid_episode_is_no_probe(logged, tmp_path, monkeypatch):
    import dreamgym.pipeline.rl_run as module

    rates = iter([None, 0.5, 0.25, None])
    monkeypatch.setattr(module, "real_rate", lambda played: next(rates))
    run = a_run(logged, tmp_path, {"iterations": 4}, VaultModel())
    told = []
    run.run(told.append, adapter.tasks("probe", 2), every=1)
    assert [m.get("probe_real_success") for m in told] == [None, 0.5, 0.25, None]
    assert [p["iteration"] for p in run.probe] == [2, 3]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_it_ends_when_probes_get_no_better(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 30, "learning_rate": 1e-9}, VaultModel())
    run.run(lambda m: None, adapter.tasks("probe", 4), every=1, temperature=0.0, patience=2)
    assert run.ended == "patience"
    assert run.iteration == 3, "the first is the best, and two were no better"


def test_an_alarm_ends_a_run_that_dreams_too_well(logged, tmp_path):
    watch = Limits(**dict.fromkeys(MEANING) | {"dream_gap": 0.0}, in_a_row=1, stop=True)
    keys = {"iterations": 30, "tasks": 6, "group": 8, "learning_rate": 2e-3, "watch": watch}
    run = a_run(logged, tmp_path, keys, VaultModel(gullible="key"))
    told = []
    run.run(told.append, adapter.tasks("probe", 4), every=1)
    assert run.ended == "alarm"
    assert told[-1]["dream_gap"] == told[-1]["reward"] - told[-1]["probe_real_success"]
    assert told[-1]["dream_gap"] > 0
    assert "the dream pays what the real environment does not" in " ".join(alarms(told, watch))


def test_the_horizon_grows(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 3, "horizon": (1, 3), "horizon_every": 1}, VaultModel())
    run.run(lambda m: None)
    episodes = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    longest = [max(len(e["transitions"]) for e in episodes if e.get("policy_version", 0) == n) for n in range(3)]
    assert longest[0] == 1
    assert 1 < longest[1] <= 3
    assert longest[2] <= 3
    cut = [e for e in episodes if e["stop"] == "max_steps"]
    assert {len(e["transitions"]) for e in cut} <= {1, 3}
    real = a_run(logged, tmp_path / "real", {"iterations": 1, "horizon": (2,)})
    real.run(lambda m: None)
    assert real.counter.total <= 2 * 12
    with pytest.raises(ValueError, match="must grow"):
        RLConfig(horizon=(5, 3))


def test_each_sign_of_trouble_is_told_once_it_lasts():
    calm = dict.fromkeys(MEANING, 0.0) | {"reward_sd": 0.4, "surprisal": 0.5}
    limits = Limits(reward_sd=0.1, grad_norm=5.0)
    assert alarms([], limits) == []
    assert alarms([calm] * 5, limits) == []
    bad = {"reward_sd": 0.0, "surprisal": 0.0, "zero_variance_groups": 1.0, "repeated": 0.9, "invalid": 0.5, "identical_groups": 0.95}
    bad |= {"grad_norm": 9.0, "dream_gap": 0.6}
    for name, value in bad.items():
        worse = calm | {name: value}
        assert not alarms([worse] * 2, limits)
        assert not alarms([worse, calm, worse, worse], limits), "it must last"
        [text] = alarms([calm, worse, worse, worse], limits)
        assert text.startswith(name)
        assert not alarms([worse] * 3, limits.model_copy(update={name: None}))
    probed = [calm | {"dream_gap": 0.6} if n % 5 == 4 else {k: v for k, v in calm.items() if k != "dream_gap"} for n in range(15)]
    assert len(alarms(probed, limits)) == 1, "of probes, not of iterations"
    assert not alarms([*probed, probed[0]], limits)


def test_a_failed_iteration_leaves_its_episodes_to_read(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 2})
    run.lm.model.lm_head.register_full_backward_hook(lambda module, into, out: (into[0] * float("nan"),))
    with pytest.raises(TrainingError, match=r"iteration 0: the gradient is nan.*failed\.jsonl"):
        run.run(lambda m: None)
    assert len(list(read_episodes(tmp_path / "failed.jsonl"))) == 12


class Silent(VaultModel):
    """Knows the vault, and gives no usable reply to every fifth question."""

    def _one(self, r):
        asked = zlib.crc32(repr((r.instruction, r.state, r.action, r.key)).encode())
        return super()._one(r) if asked % 5 else Prediction(None, StopReason.INVALID_REPLY, "...")


def test_a_dream_that_is_silent_every_fifth_time_costs_episodes_and_pays_none_by_accident(logged, tmp_path):
    run = a_run(logged, tmp_path, {"iterations": 3, "tasks": 6}, Silent())
    told = []
    run.run(told.append)
    assert run.ended == "iterations"
    played = list(read_episodes(tmp_path / "episodes.jsonl"))
    silenced = [e for e in played if e.stop == StopReason.INVALID_REPLY]
    assert 0 < len(silenced) < len(played)
    assert all(e.transitions[-1].reward is None or not e.transitions[-1].reward for e in silenced)
    assert sum(round(m["invalid"] * m["episodes"]) for m in told) == len(silenced), "counted"
    for e in played:
        assert (e.dream_reward() or 0) == (e.stop == StopReason.WON), "paid for a win and for nothing else"
    watched = {"iterations": 30, "tasks": 6, "watch": Limits(**dict.fromkeys(MEANING) | {"invalid": 0.2}, in_a_row=2, stop=True)}
    run = a_run(logged, tmp_path / "watched", watched, Silent())
    run.run(lambda m: None)
    assert (run.ended, run.iteration) == ("alarm", 2)


def test_a_policy_that_emits_garbage_ends_by_name_with_its_state_saved(logged, tmp_path):
    episodes, start = logged
    torch.manual_seed(0)
    lm = LocalLM.load(start)
    LocalLM(tiny_llama(len(lm.tokenizer), 1, width=64, layers=2), lm.tokenizer).save(tmp_path / "garbage")
    keys = {"iterations": 9, "watch": Limits(**dict.fromkeys(MEANING) | {"zero_variance_groups": 0.98}, in_a_row=2, stop=True)}
    run = a_run((episodes, tmp_path / "garbage"), tmp_path / "run", keys, VaultModel())
    told = []
    run.run(told.append)
    assert (run.ended, run.iteration) == ("alarm", 2)
    assert [m["reward"] for m in told] == [0.0, 0.0]
    assert [m["invalid"] for m in told] == [0.0, 0.0], "nonsense is a valid failure: it is the policy's own"
    assert all(m["no_effect"] > 0.9 for m in told)
    again = a_run((episodes, tmp_path / "garbage"), tmp_path / "run", keys, VaultModel())
    again.run(told.append)
    assert (again.ended, again.iteration, len(told)) == ("alarm", 2, 2), "it ended there for good, until its limits are raised"
