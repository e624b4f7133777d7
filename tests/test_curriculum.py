"""What tasks are worth, and how they are chosen."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.core.types import Episode, StopReason, Task, Transition
from dreamgym.curriculum.config import SamplerConfig
from dreamgym.curriculum.sampler import FLOOR, ValueSampler
from dreamgym.curriculum.values import UNFINISHED, VALUES, balance, progress_of, progress_variance, variance

TASKS = [f"t{i}" for i in range(40)]
REWARDS = st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=12)


def written(parent: str, number: int = 0) -> Task:
    return Task(id=f"{parent}~{number}", instruction="cook", first_state=(), lineage=(parent,))


def test_the_value_of_a_group_is_its_variance():
    assert variance([1.0, 0.0, None]) == 0.25
    assert variance([1.0, None]) is None


@given(REWARDS)
def test_values_agree_where_they_must(rewards):
    valid = [r for r in rewards if r is not None]
    found = {name: value(rewards, ()) for name, value in VALUES.items()}
    if len(valid) < 2:
        assert set(found.values()) == {None}, "invalid rollouts say nothing"
        return
    p = sum(valid) / len(valid)
    assert found["variance"] == pytest.approx(p * (1 - p))
    assert found["progress"] == pytest.approx(p * (1 - p)), "without progress it is Eq. 7"
    assert all(0 <= v <= 0.25 for v in found.values() if v is not None)
    if p == 1:
        assert set(found.values()) == {0.0}, "what is always won teaches nothing"
    elif p < 1:
        assert found["balance"] > 0


def test_what_always_fails_at_the_end_is_seen_by_progress_alone():
    late, early = [0.9] * 4, [0.0] * 4
    assert variance([0.0] * 4, late) == 0
    assert progress_variance([0.0] * 4, late) == pytest.approx(0.18 * 0.82), "as if one in five were won nine times in ten"
    assert progress_variance([0.0] * 4, early) == 0
    assert balance([0.0] * 4) == balance([0.0] * 4, late)
    assert progress_variance([0.0, 0.0, None], [0.5, None, None]) == pytest.approx(1 / 6 * 5 / 6), "of those of which it is known"


@given(st.integers(2, 8), st.floats(0, UNFINISHED), st.floats(0, UNFINISHED))
def test_what_comes_further_is_worth_more_but_not_as_much_as_what_is_won_half_the_time(n, one, other):
    near, far = sorted((one, other), reverse=True)
    failed = [progress_variance([0.0] * n, [p] * n) for p in (far, near)]
    assert failed[0] <= failed[1]
    half = [1.0] * (n // 2) + [0.0] * (n - n // 2)
    assert failed[1] < progress_variance(half, [1.0 if r else far for r in half])
    assert progress_variance([0.0] * 4, [UNFINISHED] * 4) > FLOOR, "done but for the last step: worth varying"


def episode(*reasonings: str, stop: StopReason = StopReason.MAX_STEPS) -> Episode:
    steps = tuple(Transition(state=("[a] b: c",), action="x", reward=0.0, outcome="go", reasoning=r) for r in reasonings)
    task = Task(id="t", instruction="", first_state=())
    return Episode(id="e", env="dream", task=task, source="dream", behaviour="policy", transitions=steps, stop=stop)


def test_progress_is_what_the_reasoning_says():
    assert progress_of(episode("done 1 of 4 , works", "fails", "done 3 of 4 , works", "done 2 of 4 , works")) == 0.75
    assert progress_of(episode("works")) is None
    assert progress_of(episode("done 4 of 4 , works")) == 0.99, "done, but not won"
    assert progress_of(episode("done 9 of 0")) is None
    assert progress_of(episode("done 1 of 2", stop=StopReason.INVALID_REPLY)) is None


def test_the_sampler_prefers_half_solved_tasks_and_resumes_exactly():
    sampler = ValueSampler(TASKS, 0)
    for name in sampler.next(40):
        sampler.observe(name, [1.0, 0.0] if name in ("t1", "t2") else [0.0, 0.0])
    sampler.observe("t3", [None, None])
    counts = Counter(name for _ in range(50) for name in sampler.next(8))
    assert set(counts) == set(TASKS), "no task starves"
    assert counts["t1"] + counts["t2"] > 4 * counts.total() / len(TASKS)
    twin = ValueSampler(TASKS, 0)
    twin.load_state_dict(sampler.state_dict())
    assert [sampler.next(8) for _ in range(3)] == [twin.next(8) for _ in range(3)]
    with pytest.raises(ValueError, match="other tasks"):
        twin.load_state_dict({"draws": 0, "value": {}, "visits": {}})


@pytest.mark.parametrize(("turns", "often"), [("played", {2}), ("valid", {6, 7, 8, 9, 10})])
def test_a_task_that_nobody_can_play_waits_for_its_turn(turns, often):
    sampler = ValueSampler(TASKS, 0, SamplerConfig(value="uniform", turns=turns))
    counts = Counter[str]()
    for _ in range(10):
        for name in sampler.next(8):
            counts[name] += 1
            sampler.observe(name, [None, None] if name == "t1" else [1.0, 0.0])
    assert counts["t1"] in often
    assert sampler.values()["t1"]["visits"] == 0


def test_uniform_plays_every_task_before_any_twice():
    sampler = ValueSampler(TASKS, 0, SamplerConfig(value="uniform"))
    counts = Counter[str]()
    for _ in range(10):
        for name in sampler.next(8):
            counts[name] += 1
            sampler.observe(name, [1.0, 0.0] if name == "t1" else [0.0, 0.0])
    assert set(counts.values()) == {2}


@given(st.floats(0, 1), st.integers(0, 30), st.integers(1, 24), st.integers(0, 9))
def test_lambda_bounds_the_synthetic_share_of_every_draw(share, many, n, seed):
    sampler = ValueSampler(TASKS, seed, SamplerConfig(synthetic=share))
    sampler.add([written("t1", i) for i in range(many)])
    for _ in range(4):
        drawn = sampler.next(n)
        assert len(drawn) == len(set(drawn)) == n
        assert sum("~" in t for t in drawn) <= share * n
        for name in drawn:
            sampler.observe(name, [1.0, 0.0])


@given(st.floats(0, 1), st.integers(1, 12), st.integers(0, 30), st.integers(1, 40))
def test_lambda_bounds_what_is_drawn_from_few_logged_tasks(share, logged, many, n):
    sampler = ValueSampler([f"t{i}" for i in range(logged)], 0, SamplerConfig(synthetic=share))
    sampler.add([written("t0", i) for i in range(many)])
    drawn = sampler.next(n)
    assert len(drawn) == len(set(drawn)) <= n
    assert sum("~" in t for t in drawn) <= share * len(drawn)
    if share == 0:
        assert len(drawn) == min(n, logged)


@given(st.lists(st.tuples(st.sampled_from(TASKS[:6]), REWARDS), max_size=30))
def test_shares_of_tasks_are_shares(groups):
    sampler = ValueSampler(TASKS, 0)
    for name, rewards in groups:
        sampler.observe(name, rewards)
    told = sampler.metrics()
    ends = ("tasks_all_won", "tasks_all_failed", "tasks_all_invalid")
    assert sum(told[k] for k in ends) <= told["tasks_played"] == len({name for name, _ in groups})
    assert told["tasks_seen"] <= told["tasks_played"]


def test_a_child_begins_with_its_parents_value_and_goes_where_nobody_can_play_it():
    sampler = ValueSampler(TASKS, 0, SamplerConfig(synthetic=0.5))
    sampler.observe("t1", [0.0, 0.0, 0.0])
    sampler.add([written("t1", 0), written("t1", 1), written("nobody", 2)])
    values = sampler.values()
    assert values["t1~0"]["value"] == values["t1"]["value"] == 0.0
    assert values["nobody~2"]["value"] == 0.25
    sampler.observe("t1~0", [0.0, None])
    sampler.observe("t1~0", [None, None])
    sampler.observe("t1~1", [None, 0.0])
    assert sampler.unplayable() == ["t1~0"]
    sampler.observe("t2", [None, None])
    assert sampler.unplayable() == ["t1~0"], "a logged task stays"
    assert sampler.metrics()["tasks_all_invalid"] == 1
    assert sampler.metrics()["tasks_all_failed"] == 3, "all failed and all invalid are two things"
    sampler.drop(sampler.unplayable())
    assert "t1~0" not in sampler.values()
    twin = ValueSampler(TASKS, 0, SamplerConfig(synthetic=0.5))
    twin.load_state_dict(sampler.state_dict())
    assert [sampler.next(8) for _ in range(3)] == [twin.next(8) for _ in range(3)]
    with pytest.raises(ValueError, match="no lineage"):
        sampler.add([Task(id="t99", instruction="", first_state=())])


def test_a_cluster_is_one_group():
    sampler = ValueSampler(["a", "b", "c"], 0, clusters={"a": 0, "b": 0, "c": 1})
    sampler.observe("a", [1.0])
    assert sampler.values()["a"]["visits"] == 0, "one rollout is no group"
    sampler.observe("b", [0.0])
    assert sampler.values()["b"]["value"] == 0.25, "the other's success stands beside"
    sampler.observe("a", [0.0])
    assert sampler.values()["a"]["value"] == sampler.values()["b"]["value"] == 0.0, "all of a cluster that were played are worth the same"
    sampler.add([Task(id="a~1", instruction="", first_state=(), lineage=("a",))])
    sampler.observe("a~1", [1.0])
    assert sampler.values()["b"]["value"] == pytest.approx(2 / 9), "a written task is in the cluster of the one that it descends from"
    before = sampler.values()
    sampler.observe("c", [None])
    sampler.observe("b", [None, None])
    now = sampler.values()
    assert [now[t]["visits"] for t in "abc"] == [before[t]["visits"] for t in "abc"], "all invalid is no visit, in a cluster neither"
    assert now["b"]["value"] == pytest.approx(before["b"]["value"], abs=0.01)
    twin = ValueSampler(["a", "b", "c"], 0, clusters={"a": 0, "b": 0, "c": 1})
    twin.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    for one in (sampler, twin):
        one.observe("a~1", [1.0])
    assert twin.values() == sampler.values(), "also after a resume"
    sampler.drop(["a~1"])
    sampler.observe("b", [0.0])
    assert sampler.values()["b"]["value"] == 0.0, "and leaves it"
    sampler.observe("c", [0.0, 0.0])
    assert sampler.values()["c"]["value"] == 0.0


def test_what_nobody_has_played_is_worth_what_its_cluster_is():
    tasks = [f"{kind}{i}" for kind in "ab" for i in range(40)]
    clusters = {t: "ab".index(t[0]) for t in tasks}
    sampler = ValueSampler(tasks, 0, SamplerConfig(by_value=1.0), clusters, pooled=False)
    assert len(set(sampler.next(10))) == 10, "nothing is known yet, and all is drawn alike"
    for i in range(5):
        sampler.observe(f"a{i}", [1.0, 1.0])
        sampler.observe(f"b{i}", [1.0, 0.0])
    sampler.add([Task(id="a0~1", instruction="", first_state=(), lineage=("a0",))])
    sampler.observe("a0~1", [1.0, 0.0])
    drawn = [t for _ in range(30) for t in sampler.next(8)]
    new = {kind: sum(t[0] == kind and int(t[1:]) >= 5 for t in drawn) for kind in "ab"}
    assert new["a"] > 0, "the floor"
    assert new["b"] > 4 * new["a"], "0.25 + 0.02 against 0.02; what is written says nothing of its cluster"
    assert sampler.values()["b7"]["visits"] == 0
    alone = ValueSampler(tasks, 0, SamplerConfig(by_value=1.0), {t: i for i, t in enumerate(tasks)}, pooled=False)
    alone.observe("b0", [1.0, 0.0])
    assert alone.next(1) == ["b0"], "only what is known of is drawn by value"
    twin = ValueSampler(tasks, 0, SamplerConfig(by_value=1.0), clusters, pooled=False)
    twin.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [sampler.next(8) for _ in range(3)] == [twin.next(8) for _ in range(3)], "also after a resume"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_the_share_by_value_leaves_the_rest_to_the_least_played(share):
    sampler = ValueSampler(TASKS, 0, SamplerConfig(by_value=share))
    for task in TASKS:
        sampler.observe(task, [1.0, 1.0])
    for task in TASKS[:20]:
        sampler.observe(task, [1.0, 0.0])
    for task in TASKS[20:]:
        sampler.observe(task, [1.0, 1.0])
    drawn = [t for _ in range(40) for t in sampler.next(8)]
    valuable = sum(t in TASKS[:20] for t in drawn) / len(drawn)
    assert valuable == pytest.approx(0.92 * share + 0.5 * (1 - share), abs=0.08), "the others are drawn whatever they are worth"


def test_tasks_alike_are_in_one_cluster():
    pytest.importorskip("sklearn", reason="needs the extra [cluster]")
    from dreamgym.curriculum.clusters import clusters_of
    from dreamgym.replay.encoder import HashingEncoder

    texts = [f"{verb} the {thing}" for verb in ("unlock", "cook") for thing in ("box", "door", "carrot", "kiwi")]
    tasks = {f"t{i}": Task(id=f"t{i}", instruction=text, first_state=()) for i, text in enumerate(texts)}
    found = clusters_of(tasks, 2, HashingEncoder(), 0)
    assert found == clusters_of(tasks, 2, HashingEncoder(), 0)
    assert len({found[f"t{i}"] for i in range(4)}) == len({found[f"t{i}"] for i in range(4, 8)}) == 1
    assert found["t0"] != found["t4"]
    assert set(clusters_of(tasks, 99, HashingEncoder(), 0).values()) == set(range(8)), "no more clusters than instructions"


def test_what_the_configuration_says_reaches_the_run(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs the extra [train]")
    import dreamgym.pipeline.reinforce as module
    from dreamgym.core.errors import ConfigError
    from dreamgym.pipeline.config_file import load_config
    from dreamgym.pipeline.run import Run
    from dreamgym.pipeline.stages import STAGES

    class ReachedError(Exception):
        pass

    def reached(*words, **keys):
        raise ReachedError(*words)

    monkeypatch.setattr(module, "RLRun", reached)
    keys = ["env=examples.own_environment:adapter", "logs=collect", "collect_tasks=8", "rl.environment=real", "base=tiny"]
    run = Run(tmp_path / "run", load_config(None, [*keys, "curriculum.turns=valid", "curriculum.value=balance"]))
    run.stage("collect", lambda: STAGES["collect"](run))
    with pytest.raises(ReachedError) as caught:
        module.train_policy(run)
    choose, generator, achieved, clusters = caught.value.args[-4:]
    assert (choose.turns, choose.value, choose.synthetic, generator, achieved, clusters) == ("valid", "balance", 0.0, None, None, None)
    ppo = ["curriculum.clusters=2", "rl.advantage=gae", "rl.group=1"]
    other = Run(tmp_path / "ppo", load_config(None, [*keys, *ppo]))
    other.stage("collect", lambda: STAGES["collect"](other))
    with pytest.raises(ReachedError) as caught:
        module.train_policy(other)
    assert set(caught.value.args[-1].values()) == {0, 1}
    grpo = Run(tmp_path / "grpo", load_config(None, [*keys, "curriculum.clusters=2"]))
    grpo.stage("collect", lambda: STAGES["collect"](grpo))
    with pytest.raises(ReachedError) as caught:
        module.train_policy(grpo)
    assert set(caught.value.args[-1].values()) == {0, 1}
    with pytest.raises(ConfigError, match="by_value: 1 leaves no draw"):
        load_config(None, ["curriculum.by_value=1"])
    with pytest.raises(ConfigError, match="give synthetic"):
        load_config(None, ["curriculum.hindsight=true"])
