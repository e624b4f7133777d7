"""Several runs as one result: arms by configuration, real success over seeds, and what cannot be held against one another."""

import json
from statistics import stdev

import pytest
from command import dreamgym
from test_report import episode, stage

from dreamgym.core.errors import DataError
from dreamgym.core.files import write_atomic, write_episodes
from dreamgym.core.types import StopReason
from dreamgym.pipeline.compare import compare
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.config_file import dump_config
from dreamgym.pipeline.stats import paired_interval

WON, LOST, INVALID = StopReason.WON, StopReason.LOST, StopReason.INVALID_ENV


def a_run(folder, seed, before, after, later=(), **config):
    """``before`` ...: how each game's episode ended."""
    write_atomic(folder / "config.yaml", dump_config(RunConfig(**{"env": "kitchen:adapter", "seed": seed} | config)))
    for arm, ends in (("sft", before), ("policy", after), ("s2r", later)):
        if ends:
            write_episodes(folder / f"eval-{arm}-test.jsonl", [episode(f"g{i}", end) for i, end in enumerate(ends)])
    stage(folder, "collect", real_steps=1000)
    stage(folder, "train", rl_real_steps=100 * seed, probe_real_steps=10)
    return folder


def test_runs_that_differ_in_their_seed_are_one_arm(tmp_path):
    one = a_run(tmp_path / "a1", 1, (LOST, LOST, LOST, WON), (WON, LOST, LOST, WON), threads=1)
    two = a_run(tmp_path / "a2", 2, (LOST, LOST, LOST, LOST), (WON, WON, INVALID, WON), threads=2)
    found = compare([two, one])
    [arm] = found.arms
    assert (arm.name, arm.seeds, arm.runs) == ("kitchen:adapter", [1, 2], [str(one), str(two)])
    assert arm.success["before"].by_seed == [0.25, 0.0]
    assert arm.success["after"].by_seed == [0.5, 1.0], "an invalid episode is none"
    assert (arm.success["after"].mean, arm.success["after"].sd) == (0.75, pytest.approx(stdev([0.5, 1.0])))
    assert (arm.invalid, arm.real_steps, arm.wall_s) == (1, {"logs": 1000.0, "rl": 150.0, "probe": 10.0}, 180.0)
    [apart] = found.differences
    after = [{"g0": 1.0, "g1": 0.0, "g3": 1.0}, {"g0": 1.0, "g1": 1.0, "g3": 1.0}]
    before = [{"g0": 0.0, "g1": 0.0, "g3": 1.0}, {"g0": 0.0, "g1": 0.0, "g3": 0.0}]
    oracle = paired_interval(after, before, ("after", "before"))
    assert (apart.first, apart.second, apart.n_seeds, apart.n_games) == ("after", "before", 2, 3)
    assert (apart.mean, apart.low, apart.high) == (oracle["mean"], oracle["low"], oracle["high"])


def test_arms_are_named_by_what_sets_them_apart_and_held_against_each_other_at_equal_seeds(tmp_path):
    ends = (WON, LOST)
    ours = [a_run(tmp_path / f"a{s}", s, ends, (WON, WON), (WON, WON)) for s in (0, 1)]
    theirs = [a_run(tmp_path / f"b{s}", s, ends, ends, rl={"environment": "real"}) for s in (0, 1)]
    other = a_run(tmp_path / "c", 7, ends, ends, rl={"environment": "real", "group": 2})
    found = compare([*ours, *theirs, other])
    dream, real, few = (a.name for a in found.arms)
    sizes = (("dream", 4), ("real", 4), ("real", 2))
    assert (dream, real, few) == tuple(f"rl.environment={e} rl.group={n} s2r.group={n}" for e, n in sizes)
    assert found.arms[2].success["after"].sd is None
    pairs = {(d.first, d.second): d.mean for d in found.differences}
    assert pairs[f"{dream}, after", f"{real}, after"] == 0.5
    assert pairs[f"{dream}, s2r", f"{dream}, after"] == 0.0
    assert not any({d.first.split(",")[0], d.second.split(",")[0]} == {real, few} for d in found.differences), "no seed in common"


def test_a_budget_is_another_arm_and_the_address_of_a_server_is_not(tmp_path):
    server = {"base_url": "http://a/v1", "model": "m"}
    one, two = ({"experience": {"endpoint": {"server": server | {"base_url": f"http://{at}/v1"}}}} for at in "ab")
    few = two | {"s2r": {"real_budget": 900}}
    runs = [a_run(tmp_path / name, s, (WON,), (WON,), **c) for name, s, c in (("a", 0, one), ("b", 1, two), ("c", 2, few))]
    assert [(a.name, a.seeds) for a in compare(runs).arms] == [("s2r.real_budget=5000", [0, 1]), ("s2r.real_budget=900", [2])]


def test_what_cannot_be_one_result_is_refused_by_name(tmp_path):
    ends = (WON, LOST)
    one = a_run(tmp_path / "one", 0, ends, ends)
    with pytest.raises(DataError, match="both are of seed 0 and one configuration"):
        compare([one, a_run(tmp_path / "again", 0, ends, ends)])
    with pytest.raises(DataError, match="evaluated on other games"):
        compare([one, a_run(tmp_path / "more", 1, (*ends, LOST), (*ends, LOST))])
    with pytest.raises(DataError, match="played other games each"):
        compare([a_run(tmp_path / "torn", 1, (WON,), ends)])
    with pytest.raises(DataError, match="no episode of its evaluation after is valid"):
        compare([a_run(tmp_path / "broken", 1, ends, (INVALID, INVALID))])
    with pytest.raises(DataError, match=r"no evaluation on the panel unseen; run: dreamgym eval --run .*one"):
        compare([one], "unseen")
    with pytest.raises(DataError, match="is no run directory"):
        compare([tmp_path / "nothing"])
    write_episodes(one / "eval-policy-test.jsonl", [episode("g0", WON, "dream"), episode("g1", WON, "dream")])
    with pytest.raises(DataError, match="hold a dreamed episode"):
        compare([one])


def test_the_command_shows_and_writes_it(tmp_path):
    runs = [str(a_run(tmp_path / f"r{s}", s, (WON, LOST), (WON, WON))) for s in (0, 1)]
    done = dreamgym("compare", *runs, "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout
    said = " ".join(done.stdout.split())
    assert "Real success on 2 games of the panel test" in said
    assert "0.500 ± 0.000" in said
    assert "1.000 ± 0.000" in said
    assert json.loads((tmp_path / "found.json").read_text())["arms"][0]["success"]["after"]["by_seed"] == [1.0, 1.0]
    assert dreamgym("compare", str(tmp_path / "none")).returncode == 1
