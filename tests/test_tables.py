"""Result files from cells: what was reached when, games by kind, and the check that a written file is still what its cells say."""

import json
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")

from benchmarks import curriculum, endings, experience, rl, tables
from benchmarks.cells import EXPERIENCE, GOES_ON_FROM, GRPO, LONGER, PROBE, REAL_BUDGET, S2R, SFT, measure_code
from benchmarks.neutral import shown_equal
from benchmarks.once import timed
from dreamgym.core.files import read_json, write_json
from dreamgym.core.state import diff, make_state
from dreamgym.core.types import Episode, Task, Transition
from dreamgym.pipeline.config_file import load_config

ROOT = Path(__file__).parents[1]


def cell(*probes, shared=100.0):
    """A run with probes (success, real steps of RL, of probes, seconds)."""
    keys = ("success", "rl_steps", "probe_steps", "wall_s")
    curve = [{"iteration": 5.0 * n, **dict(zip(keys, map(float, p), strict=True))} for n, p in enumerate(probes, 1)]
    return {"curve": curve, "shared_wall_s": {"sft": shared}}


ARMS = {
    "grpo_real": [
        cell((0.5, 1000, 100, 50), (0.95, 2000, 200, 100), (1.0, 3000, 300, 150)),
        cell((0.9, 1000, 100, 40), (1.0, 2000, 200, 80)),
    ],
    "grpo_dream": [cell((0.9, 0, 100, 30), shared=400.0), cell((0.6, 0, 100, 30), (0.8, 0, 200, 60), shared=400.0)],
    "grpo_s2r": [cell((0.9, 100, 100, 10)), cell((0.85, 100, 100, 10), (0.92, 200, 200, 20))],
}


def test_a_model_that_was_killed_in_training_notes_the_time_of_all_its_processes(tmp_path):
    folder, began = tmp_path / "model", time.time()

    def killed():
        state = folder / "checkpoints" / "checkpoint-100" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
        os.utime(state, (began + 50, began + 50))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timed(folder, killed)
    timed(folder, lambda: None)
    assert 49 < read_json(folder / "wall_s.json")["wall_s"] < 60
    assert not (folder / "started.json").exists()
    timed(folder, killed)  # it is there already


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.setattr(rl, "cells", lambda level, method: ARMS[method])


def test_data_until_the_goal_counts_nothing_after_a_dream_that_is_there_already(arms):
    found = rl.data_to_goal("grpo")
    assert found["goal"] == pytest.approx(0.9)
    assert found["real"] == [2000.0, 1000.0]
    assert found["dream"] == [0.0, None], "the second dream never gets there"
    assert found["s2r"] == [0.0, 200.0]
    assert found["ratio_s2r"] == pytest.approx(100 / 1500)


def test_no_ratio_where_a_seed_never_reaches_the_goal(arms, monkeypatch):
    monkeypatch.setitem(ARMS, "grpo_s2r", [cell((0.9, 100, 100, 10)), cell((0.85, 100, 100, 10))])
    found = rl.data_to_goal("grpo")
    assert found["s2r"] == [0.0, None]
    assert found["ratio_s2r"] is None


def test_time_to_equal_charges_real_steps_of_learning_and_of_probes(arms, monkeypatch):
    assert rl.time_to_equal("grpo")["1"]["serial"]["ratio"] is None
    monkeypatch.setitem(ARMS, "grpo_dream", [cell((0.9, 0, 100, 30), shared=400.0)] * 2)
    found = rl.time_to_equal("grpo")
    assert found["0"]["serial"]["real"] == found["0"]["at_once"]["real"] == [200.0, 140.0]
    assert found["0"]["serial"]["dream"] == [430.0, 430.0]
    assert found["1"]["serial"]["real"] == [200 + 2200, 140 + 1100]
    assert found["1"]["serial"]["ratio"] == pytest.approx(530 / 1820)
    assert found["1"]["at_once"]["real"] == [200 + 2200 / 64, 140 + 1100 / 64]


def test_a_real_arm_that_never_gets_there_counts_with_all_that_it_took(arms, monkeypatch):
    late = cell((0.5, 1000, 100, 60), (0.6, 2000, 200, 200))
    monkeypatch.setitem(ARMS, "grpo_real", [cell((1.0, 1000, 100, 60)), late])
    monkeypatch.setitem(ARMS, "grpo_dream", [cell((1.0, 0, 100, 30), shared=400.0)] * 2)
    monkeypatch.setitem(ARMS, "grpo_s2r", [cell((1.0, 100, 100, 10))] * 2)
    steps, time = rl.data_to_goal("grpo"), rl.time_to_equal("grpo")["1"]["serial"]
    assert steps["real"] == [1000.0, None]
    assert time["real"] == [100 + 60 + 1100, None]
    assert time["ratio"] == pytest.approx((430 + 100) / ((100 + 60 + 1100 + 100 + 200 + 2200) / 2)), "an upper bound"


def test_a_real_arm_that_still_learns_was_not_given_its_full_budget(arms, monkeypatch):
    def learnt(*rates):
        return cell(*((r, 0, 0, 0) for r in rates))

    monkeypatch.setitem(ARMS, "grpo_real", [learnt(0.5, 0.8, 0.9, 0.91), learnt(0.5, 0.7, 0.8, 0.81)])
    assert rl.full_budget("grpo") == {"rise_in_last_quarter": [pytest.approx(0.01)] * 2, "full": True}
    monkeypatch.setitem(ARMS, "grpo_real", [learnt(0.5, 0.8, 0.9, 0.91), learnt(0.5, 0.6, 0.7, 0.8)])
    assert not rl.full_budget("grpo")["full"]


def test_games_of_the_pool_apart_by_kind():
    seeds = [{"textworld/recipe1/7": 1.0, "textworld/recipe2+go6/3": 0.0}, {"textworld/recipe1/7": 0.0}]
    assert curriculum.by_kind(seeds) == {"recipe1": [{"textworld/recipe1/7": 1.0}, {"textworld/recipe1/7": 0.0}], "recipe2+go6": [
        {"textworld/recipe2+go6/3": 0.0}, {}]}  # fmt: skip


def test_a_curriculum_is_paired_with_uniform_drawing_by_the_seeds_that_both_have(monkeypatch):
    def played(seeds, success):
        games = [{"source": "real", "panel": "test", "task": f"textworld/easy/{n}", "success": success} for n in (1, 2)]
        return [{"seed": s, "rows": [dict(g, success=g["success"] + s) for g in games]} for s in seeds]

    found = {"grpo_dream+uniform": played((0, 1, 2, 4), 0.0), "grpo_dream+variance": played((0, 2, 4), 0.5)}
    monkeypatch.setattr(tables, "cells", lambda level, method: found[method])
    ours, plain = curriculum.both("variance", "test")
    assert [[a[g] - b[g] for g in a] for a, b in zip(ours, plain, strict=True)] == [[0.5, 0.5]] * 3


def test_endings_count_the_last_iterations_by_the_number_of_foods():
    plain, two = "cook green_apple fried diced", "cook green_apple fried diced and lettuce fried diced"

    def played(iteration, n, wish, stop, *actions, changes=False):
        """An episode of task ``n``; with ``changes`` each step leaves another state."""
        here = ["[kitchen] you: here", "[kitchen] kitchen_east: way", "[hall] hall_west: way"]
        states = [make_state([*here, f"[kitchen] clock: {i if changes else 0}"]) for i in range(len(actions) + 1)]
        change = [diff(a, b) for a, b in pairwise(states)]
        steps = [
            Transition(state=s, action=a, removed=c.removed, added=c.added, reward=0.0, outcome="go")
            for s, a, c in zip(states, actions, change, strict=False)
        ]
        task = Task(id=f"textworld/hard/{n}", instruction=wish, first_state=states[0])
        return Episode(
            id=f"{n}.{iteration}",
            env="dream",
            task=task,
            source="dream",
            behaviour="policy",
            transitions=steps,
            stop=stop,
            policy_version=iteration,
        )

    early = [played(0, 9, plain, "lost", "cook")] * 4
    first = [played(4, 1, plain, stop, "look") for stop in ("won", "lost", "won", "won")]
    same = [played(5, 2, two, "max_steps", *["take knife"] * 12)] * 2 + [
        played(5, 2, two, "max_steps", *["go east", "go west"] * 6, changes=True)
    ] * 2
    checked = [
        played(5, 3, two, "max_steps", "open", *["look", "go east", "go west"] * 4, changes=True),
        played(5, 3, two, "invalid_change", "eat"),
    ]
    refused, no_way = (played(5, 4, two, "max_steps", *[action] * 12) for action in ("go east", "go west"))
    one, more = endings.counted([*early, *first, *same, *checked, refused, no_way])
    assert one == ["1", "4", "0.75", "0.25", "0.00", "0", "0", "0", "0.2", "0.2"]
    assert more == ["2", "8", "0.00", "0.00", "0.88", "4", "1", "2", "0.2", "0.0"]


def test_a_written_result_that_differs_from_its_cells_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    found = {"success": [0.5, 0.75]}
    assert tables.publish("x", str, ["easy sft seed 2"], lambda: found) == 1
    assert not (tmp_path / "x.json").exists(), "not while cells are missing"
    assert tables.publish("x", str, [], lambda: found) == 0
    assert json.loads((tmp_path / "x.json").read_text())["success"] == [0.5, 0.75]
    assert tables.publish("x", str, [], lambda: found, checking=True) == 0
    assert tables.publish("x", str, [], lambda: {"success": [0.5, 0.5]}, checking=True) == 1
    assert "differs from its cells" in capsys.readouterr().out
    assert tables.publish("x", str, ["easy sft seed 2"], lambda: found, checking=True) == 1, "its cells are gone"
    assert "easy sft seed 2" in capsys.readouterr().out


def test_a_measurement_made_by_other_code_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(experience, "RESULTS", tmp_path)
    assert "faults.json" in experience.missing()
    for code, named in ((measure_code("faults"), False), ("0", True)):
        write_json(tmp_path / "faults.json", {"code": code})
        assert ("faults.json (stale)" in experience.missing()) is named
    assert measure_code("fidelity", "easy") != measure_code("fidelity", "standard"), "the models are others"


@pytest.mark.parametrize("level", ["hard", "mixed"])
def test_the_recipes_of_textworld_are_the_settings_of_the_benchmarks(level):
    config = load_config(ROOT / "recipes" / f"textworld-{level}.yaml")
    assert config.env == f"textworld/{level}"
    for ours, theirs in (
        (config.experience.fit, EXPERIENCE[GOES_ON_FROM.get(level, level)]),  # a recipe has nothing to go on from
        (config.experience.prompt, LONGER[level]),
        (config.sft.fit, SFT[level]),
        (config.rl, GRPO[level]),
    ):
        assert theirs.items() <= ours.model_dump().items()
    assert (config.rl.probe_every, config.evaluation.probe_games) == (PROBE["every"], PROBE["games"])
    if level in S2R:
        after = GRPO[level] | S2R[level] | {"real_budget": REAL_BUDGET[level]["grpo"], "probe_every": PROBE["every"]}
        assert after.items() <= config.s2r.model_dump().items()


def test_an_edit_of_what_was_played_stands_for_kinds_that_were_not():
    """After the small form came out equal: what only differs in modules that were played is the same, what differs elsewhere is not."""
    old = {
        "played": ["sft"],
        "code": {"sft": "a", "iwm": "b", "dpo": "c", "warm": "d"},
        "modules": {"sft": {"lm": "1"}, "iwm": {"lm": "1", "early": "5"}, "dpo": {"lm": "1", "preference": "7"}, "warm": {"words": "9"}},
    }
    new = {
        "played": ["sft"],
        "code": {"sft": "A", "iwm": "B", "dpo": "C", "warm": "d"},
        "modules": {
            "sft": {"lm": "2", "bits": "4"},
            "iwm": {"lm": "2", "bits": "4", "early": "5"},
            "dpo": {"lm": "2", "bits": "4", "preference": "8"},
            "warm": {"words": "9"},
        },
    }
    assert shown_equal(old, new) == {"A": "a", "B": "b"}
    assert shown_equal(old, old) == {}
    new["modules"]["iwm"]["helper"] = "3"  # a module that no played kind has
    assert shown_equal(old, new) == {"A": "a"}
