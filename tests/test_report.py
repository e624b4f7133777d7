"""The report page: what it says of a run, what it refuses, and that nothing dreamed passes for a result."""

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from dreamgym.core.errors import DataError, MissingExtraError
from dreamgym.core.files import episode_line, write_atomic, write_episodes, write_json
from dreamgym.core.types import Episode, Outcome, Panel, Source, StopReason, Task, Transition
from dreamgym.curriculum.config import SamplerConfig
from dreamgym.curriculum.sampler import ValueSampler
from dreamgym.pipeline.config import RunConfig
from dreamgym.pipeline.config_file import dump_config
from dreamgym.report.page import RunFiles, context, json_lines, spread, write_report

pytest.importorskip("jinja2")

HOSTILE = "<script>alert('x')</script> & \"open\" fridge"
CLOSED, OPEN, CARROT = "[kitchen] fridge: closed", "[kitchen] fridge: open", "[fridge] carrot: fresh"


def episode(
    name: str, stop: StopReason, source: Source = "real", panel: Panel = "test", iteration: int = 0, action: str = HOSTILE
) -> Episode:
    """Two steps: the fridge opens, then the end."""
    task = Task(id=f"game/{name}", instruction="find the <b>carrot</b>", first_state=(CLOSED,), sheet=(CARROT,), panel=panel)
    outcome: Outcome = "won" if stop == StopReason.WON else "lost" if stop == StopReason.LOST else "go"
    why = "fridge holds <i>carrot</i>" if source == "dream" else ""
    first = Transition(state=(CLOSED,), action=action, removed=(CLOSED,), added=(CARROT, OPEN), reward=0.0, outcome="go", reasoning=why)
    last = Transition(state=(CARROT, OPEN), action="eat carrot", removed=(CARROT,), reward=float(outcome == "won"), outcome=outcome)
    if not stop.valid:
        last = Transition(state=(CARROT, OPEN), action="eat carrot", reward=None, outcome="go")
    return Episode(
        id=f"{name}#{source}",
        env="dream" if source == "dream" else "kitchen",
        task=task,
        source=source,
        behaviour="policy",
        policy_version=iteration,
        transitions=(first, last),
        stop=stop,
    )


def twin_of(dreamed: Episode, stop: StopReason) -> Episode:
    """The fridge is empty in the real game where ``stop`` is no win."""
    first, last = dreamed.transitions
    if stop != StopReason.WON:
        first = first.model_copy(update={"added": (OPEN,)})
        last = Transition(state=(OPEN,), action=last.action, reward=0.0, outcome="lost")
    return dreamed.model_copy(
        update={"id": f"{dreamed.id}~twin", "source": "real", "env": "kitchen", "transitions": (first, last), "stop": stop}
    )


def stage(folder: Path, name: str, **summary: object) -> None:
    write_json(folder / f"stages/{name}.json", {**summary, "wall_s": 90.0})


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    """A run in which no stage has finished."""
    write_atomic(tmp_path / "config.yaml", dump_config(RunConfig(env="kitchen:<Adapter>", seed=5)))
    return tmp_path


@pytest.fixture
def full_run(new_run: Path) -> Path:
    """A run with all stages: real success 1/4 before and 3/4 after, dreamed success 91 %."""
    stage(new_run, "collect", real_steps=1200)
    for name in ("annotate", "base", "train-experience", "warm-start"):
        stage(new_run, name)
    stage(
        new_run,
        "train",
        rl_real_steps=0,
        probe_real_steps=77,
        transitions=40.0,
        rollout_s=50.0,
        update_s=9.0,
        experience_calls=40,
        experience_calls_remembered=4,
        experience_tokens_in=4321,
        experience_tokens_out=987,
    )
    won, lost = StopReason.WON, StopReason.LOST
    for arm, ends in (("sft", (won, lost, lost, lost)), ("policy", (won, won, won, lost))):
        stage(new_run, f"eval-{arm}", real_steps=8)
        write_episodes(new_run / f"eval-{arm}-test.jsonl", [episode(str(i), end) for i, end in enumerate(ends)])
    metrics = [{"iteration": float(i), "reward": 0.9, "invalid": 0.1, "zero_variance_groups": 0.5, "mean_value": 0.2} for i in range(3)]
    metrics[1]["probe_real_success"] = 0.625
    write_atomic(new_run / "policy_run/metrics.jsonl", "".join(json.dumps(m) + "\n" for m in metrics))
    stops = [won, lost, StopReason.MAX_STEPS, StopReason.INVALID_REPLY] * 20
    dreamed = [episode(f"t{i}", s, "dream", "train", i // 8) for i, s in enumerate(stops)]
    write_episodes(new_run / "policy_run/episodes.jsonl", dreamed)
    wins = [episode(f"w{i}", won, "dream") for i in range(2)]
    write_episodes(new_run / "audit-twins.jsonl", [wins[0], twin_of(wins[0], won), wins[1], twin_of(wins[1], lost)])
    stage(new_run, "audit")
    write_json(
        new_run / "audit.json",
        {
            "panel": "test",
            "games": 4,
            "episodes": 8,
            "successes": 4,
            "success_precision": 0.875,
            "success_recall": 1.0,
            "invalid": 0.0,
            "next_state_macro": 0.951,
            "next_state_changing": 0.9,
            "next_state": {"one": {"right": 3, "total": 4}},
            "undetermined": 2,
            "lost_precision": 1.0,
            "won_precision": 0.5,
            "optimism": 0.16,
            "policies": {"policy": {"dream": 0.912, "real": 0.75, "dream_invalid": 0.05}},
            "replay_divergences": {"open: none for <several>": 3},
            "dream_win_divergences": {},
            "dream_win_precision": 0.5,
            "dream_wins": 2,
            "dream_episodes": 4,
            "optimism_dream_trained": 0.16,
            "real_steps_audit": 321,
            "errors": [
                {
                    "class": "one",
                    "task": "game/1",
                    "instruction": "find",
                    "state": f"{CLOSED} | {CARROT}",
                    "action": HOSTILE,
                    "real": "-[]",
                    "dreamed": "@go",
                }
            ],
        },
    )
    return new_run


def text_of(page: str) -> str:
    """What a reader sees: without tags, spaces made single."""
    body = re.sub(r"<(style|script|title)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def section(page: str, name: str) -> str:
    return page.split(f'<h2 id="{name}">')[1].split("<h2 ")[0]


def test_the_headline_is_real_success_with_its_interval_and_budget(full_run: Path) -> None:
    path = write_report(full_run)
    assert path == full_run / "report.html"
    text = text_of(section(path.read_text(encoding="utf-8"), "result"))
    assert "On 4 games never trained on (panel test), real success went from 25.0 % before to 75.0 % after training." in text
    assert "+50.0 95 % interval" in text
    assert "One seed" in text
    assert "pass@1 Steps per episode Steps that changed nothing before 25.0 % 2 0 % after 75.0 % 2 0 %" in text
    for row in ("logs 1 200", "RL 0", "probe 77", "evaluation 16", "audit 321", "all 1 614"):
        assert f" {row} " in text


def test_the_costs_of_servers_are_shown_where_there_were_any(full_run: Path) -> None:
    assert "LLMs behind servers" not in section(write_report(full_run).read_text(encoding="utf-8"), "costs")
    train = json.loads((full_run / "stages/train.json").read_text())
    judge = {"judge_tokens_in": 10.0, "judge_tokens_out": 20.0, "judge_usd": 0.0123}
    admission = {"admission_tokens_in": 30.0, "admission_tokens_out": 40.0, "admission_usd": 1234.5}
    stage(full_run, "train", **train, usd=None, **judge, **admission)
    stage(full_run, "annotate", tokens_in=500, tokens_out=60, usd=2.5)
    text = text_of(section(write_report(full_run).read_text(encoding="utf-8"), "costs"))
    for row in (
        "annotating logs 500 60 2.50 ",
        "experience model, during RL 4 321 987 – ",
        "judge of dreamed successes, during RL 10 20 0.012 ",
        "judge of what comes into the buffer, during RL 30 40 1 234.50 ",
    ):
        assert f" {row}" in text.replace("\u202f", " ")


def test_every_dreamed_figure_is_marked_and_none_is_in_the_result(full_run: Path) -> None:
    page = write_report(full_run).read_text(encoding="utf-8")
    assert "dreamed" not in section(page, "result")
    assert page.count("91.2 %") == 1
    assert "dreamed 91.2 %</span>" in page
    curves = section(page, "curves")
    for shown in re.findall(r"<title>([^<]*90\.0 %[^<]*)</title>", curves):
        assert shown.startswith("dreamed: training reward, not a result")
    assert "dreamed 90.0 %</span>" in curves
    assert "real: success on the probe panel (chooses the checkpoint): 62.5 % at 2" in curves
    assert re.search(r">real 75\.0 %</text>", curves)


def test_hostile_text_is_escaped_and_nothing_is_loaded(full_run: Path) -> None:
    page = write_report(full_run).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert" in page
    assert page.count("<script") == 1
    assert not re.search(r"<(b|i)>carrot", page)
    assert "kitchen:&lt;Adapter&gt;" in page
    assert not re.search(r"https?://|//[a-z]|\bsrc=|<link|@import|url\(", page)


def test_a_false_win_comes_first_with_its_divergence(full_run: Path) -> None:
    episodes = section(write_report(full_run).read_text(encoding="utf-8"), "episodes")
    twins, training, real = episodes.split('<div class="group">')[1:]
    first, second = twins.split('<details class="episode">')[1:]
    assert "dreamed: won; real: lost" in first
    assert first.count("first divergence") == 1
    assert "part at step 1" in first
    assert "first divergence" not in second
    assert "fridge holds &lt;i&gt;carrot&lt;/i&gt;" in first
    assert training.count('<details class="episode">') == 10
    for end in ("dreamed: won", "dreamed: lost", "dreamed: invalid: the reply could not be parsed"):
        assert end in training
    assert "iteration 0" in training
    assert "iteration 9" in training
    assert "real: won" not in training
    assert real.count('<details class="episode">') == 4
    assert "dreamed:" not in real
    assert "Before training, this game: lost." in real


def test_the_audit_says_what_it_measures(full_run: Path) -> None:
    text = text_of(section(write_report(full_run).read_text(encoding="utf-8"), "audit"))
    assert "Precision of success 87.5 % of the real episodes" in text
    assert "one 3 4 75.0 %" in text
    assert "open: none for <several>" in text
    assert "16.0 points" in text


def test_costs_name_the_components(full_run: Path) -> None:
    text = text_of(section(write_report(full_run).read_text(encoding="utf-8"), "costs"))
    assert "4 321 987" in text
    assert "all 13.5 min" in text


def test_a_new_run_names_what_is_missing_and_how_to_run_it(new_run: Path) -> None:
    text = text_of(write_report(new_run).read_text(encoding="utf-8"))
    for command in ("collect", "annotate", "train-experience", "train", "eval", "audit"):
        assert f"dreamgym {command} --run {new_run}" in text
    assert "have not finished in this folder: eval-sft, eval-policy ." in text
    assert "went from" not in text


def test_a_run_killed_while_training_shows_what_is_there(full_run: Path) -> None:
    (full_run / "stages/train.json").unlink()
    for name in ("metrics", "episodes"):
        with open(full_run / f"policy_run/{name}.jsonl", "a", encoding="utf-8") as f:
            f.write('{"iteration": 3.0, "rew')
    assert f"3 of {RunConfig().rl.iterations} iterations are there" in text_of(write_report(full_run).read_text(encoding="utf-8"))


def test_the_real_control_is_not_called_dreamed(new_run: Path) -> None:
    write_atomic(new_run / "config.yaml", dump_config(RunConfig.model_validate({"rl": {"environment": "real"}})))
    write_atomic(new_run / "policy_run/metrics.jsonl", '{"iteration": 0.0, "reward": 0.5, "invalid": 0.0, "zero_variance_groups": 0.0}\n')
    page = write_report(new_run).read_text(encoding="utf-8")
    assert "real: training reward, not a result" in page
    assert "dreamed" not in section(page, "curves")


def test_learning_on_for_real_has_charts_with_all_its_probes(full_run: Path) -> None:
    metrics = '{"iteration": 0.0, "reward": 0.5, "invalid": 0.0, "zero_variance_groups": 0.0}\n'
    write_atomic(full_run / "s2r_run/metrics.jsonl", metrics)
    title = "Learning on for real: training reward and real success"
    write_episodes(full_run / "eval-s2r-test.jsonl", [episode("0", StopReason.WON)])
    begun = {c.title: c for c in context(RunFiles(full_run))["charts"]}
    names = ["real: training reward, not a result", "real: success on the test panel, before and after"]
    assert [s.name for s in begun[title].series] == names
    stage(full_run, "sim-to-real", probes=[{"iteration": 0.0, "success": 0.5}, {"iteration": 1.0, "success": 0.25}])
    (chart,) = [c for c in context(RunFiles(full_run))["charts"] if c.title == title]
    assert [s.points for s in chart.series] == [[(0.0, 0.5)], [(0.0, 0.5), (1.0, 0.25)], [(0.0, 0.75), (0.0, 1.0)]], "the start was kept"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.yaml"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_dreamed_episodes_are_no_evaluation(full_run: Path) -> None:
    write_episodes(full_run / "eval-policy-test.jsonl", [episode("d", StopReason.WON, "dream")])
    with pytest.raises(DataError, match=r"eval-policy-test\.jsonl: holds a dreamed episode"):
        write_report(full_run)


def test_twins_must_alternate(full_run: Path) -> None:
    write_episodes(full_run / "audit-twins.jsonl", [episode("d", StopReason.WON, "dream")])
    with pytest.raises(DataError, match="alternate"):
        write_report(full_run)


def test_an_audit_without_a_field_is_named(full_run: Path) -> None:
    write_json(full_run / "audit.json", {"next_state": {"one": {"right": 3}}})
    with pytest.raises(DataError, match="lacks a field"):
        write_report(full_run)


LONG = {
    "panel": "test", "games": 4, "members": 2, "n_policies": 2, "n_episodes": 16, "steps": 90, "steps_wrong": 3, "real_steps_audit": 555,
    "policies": {"expert": {"dream": 0.875, "real": 1.0}, "<lost>": {"dream": None, "real": 0.0}},
    "spearman": None, "done_accuracy": 0.99, "next_state_all": 0.97, "uncertainty_auroc": 0.8,
    "calibration": {"ece": 0.05, "n": 20, "bins": [{"confidence": 0.9, "won": 1.0, "n": 20}]},
    "epsilon_r": {"mean": 0.01, "max": 1.0}, "epsilon_p": {"mean": 0.03, "max": 1.0, "sampled": 0.1},
    "facts_per_1000_steps": {"changed_without_cause": 1.5, "left_unchanged": 2.5, "contradictions": 0.0},
    "facts_over_episodes": {"episodes": 16, "without_any": 0.875, "changed_without_cause": 2.0},
    "invalid_actions": {"precision": 0.96, "recall": 0.91, "n": 40},
    "optimism_by_policy": {"expert": {"difference": -0.125, "low": -0.25, "high": 0.0}, "<lost>": None},
    "by_depth": [{"depth": d, "n": 16, "agree": 1 - d / 40} for d in range(1, 21)],
    "asked_again": {"same": 30, "other": 1, "unusable": 0},
    "theorem_1": {"mean": {"0.9": {"says": "Vacuous: it subtracts 9."}}, "max": {}}, "judge": None,
}  # fmt: skip
ATTACKS = {"n": 300, "kinds": 30, "games": 12, "granted": 1, "due": 12, "due_granted": 12, "granted_by_kind": {"role <play>": 1}}


def test_the_long_audit_and_the_attacks_are_shown_where_they_ran(full_run: Path) -> None:
    without = section(write_report(full_run).read_text(encoding="utf-8"), "audit")
    assert "The long audit" not in without
    assert "Attacks on the reward" not in without
    write_json(full_run / "fidelity.json", LONG)
    write_json(full_run / "attacks.json", ATTACKS)
    assert "The long audit" not in write_report(full_run).read_text(encoding="utf-8"), "of a policy that has learned on since"
    for stage in ("long-audit", "attack"):
        write_json(full_run / "stages" / f"{stage}.json", {"wall_s": 1.0})
    page = section(write_report(full_run).read_text(encoding="utf-8"), "audit")
    assert page.count("<svg") == 3
    assert re.search(r"<title>share of the episodes that long, still in the real game&#39;s state: 50\.0 % at 20</title>", page)
    assert "<title>policies: real success, by dreamed success: 100 % at 0.875</title>" in page
    text = text_of(page)
    assert "Rank correlation (Spearman) –" in text
    assert "Asked again 30 / 1" in text
    assert "Futile actions, precision 0.96" in text
    assert "Futile actions, recall 0.91 of 40 steps" in text
    assert "Episodes in which facts last 0.875 share of 16 replayed episodes" in text
    assert re.search(r"expert .* real 100 % .12\.5 points \(.25\.0 \.\. 0\)", text)
    assert "γ = 0.9 Vacuous: it subtracts 9." in text
    assert "300 attacks of 30 kinds, staged in real wins of 12 games: 1 granted" in text
    assert "role <play> 1" in text


def test_a_long_audit_without_a_field_is_named(full_run: Path) -> None:
    write_json(full_run / "fidelity.json", {k: v for k, v in LONG.items() if k != "calibration"})
    write_json(full_run / "stages" / "long-audit.json", {"wall_s": 1.0})
    with pytest.raises(DataError, match=r"fidelity.json: lacks the field 'calibration'"):
        write_report(full_run)


def test_no_model_library_is_loaded() -> None:
    code = "import sys, dreamgym.report.page; print({'torch', 'transformers', 'textworld'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_without_jinja2_the_extra_is_named(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"dreamgym\[report\]"):
        write_report(full_run)


def test_lines_with_odd_separators_stay_whole_and_bad_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(episode_line(episode("a", StopReason.WON, action="say\u2028\x85hello")) + "\n", encoding="utf-8")
    assert [n for n, _, _ in json_lines(path)] == [1]
    path.write_text('{"a": 1}\n{"b"\n{"c": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"e\.jsonl:2: not JSON"):
        list(json_lines(path))


@pytest.mark.parametrize("n", [0, 1, 3, 10])
def test_spread_takes_different_items_in_order(n: int) -> None:
    for size in range(25):
        taken = spread(range(size), n)
        assert len(taken) == min(n, size)
        assert taken == sorted(set(taken))


def test_the_page_tells_which_tasks_were_played_and_what_was_written(full_run: Path) -> None:
    assert 'id="tasks"' not in write_report(full_run).read_text(encoding="utf-8"), "nothing is said of tasks that were not played"
    sampler = ValueSampler(["game/a", "game/b"], 0, SamplerConfig(synthetic=0.5))
    child = Task(id="game/a~1.1", instruction=HOSTILE, first_state=(CLOSED,), lineage=("game/a",))
    sampler.observe("game/a", [1.0, 0.0])
    sampler.observe("game/b", [0.0, 0.0, None])
    twin = child.model_copy(update={"id": "game/a~1.2", "instruction": "find the plum"})
    grandchild = child.model_copy(update={"id": "game/a~2.3", "instruction": "find the pear", "lineage": ("game/a", child.id)})
    sampler.add([child, twin, grandchild])
    sampler.observe(child.id, [1.0, 1.0, 1.0, 0.0])
    written = [t.model_dump(mode="json") for t in (child, twin, grandchild)]
    write_json(full_run / "policy_run/checkpoint/state.json", {"sampler": sampler.state_dict(), "written": written})
    draft = {"parent": "game/a", "seeds": ["find the tomato", "find the <b>carrot</b>"], "parent_value": 0.25, "iteration": 1}
    lines = [
        {**draft, "instruction": HOSTILE, "verdict": "kept", "task": child.id, "furnished": ["[shelf] <i>kiwi</i>: ripe"]},
        {**draft, "instruction": "find the plum", "verdict": "kept", "task": twin.id, "furnished": []}
        | {"solution": ["open <b>box</b>", "take plum"]},
        {**draft, "instruction": "find the lime", "verdict": "names what is not in its world: lime", "task": None},
        {**draft, "instruction": "find the kiwi", "verdict": "names what is not in its world: kiwi", "task": None},
        {"task": "game/b~0.1", "verdict": "dropped: its last group had no valid rollout", "iteration": 1},
    ]
    write_atomic(full_run / "policy_run/tasks.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    told = [json.loads(line) for line in (full_run / "policy_run/metrics.jsonl").read_text().splitlines()]
    told[-1] |= {"age_written": 1.0, "tasks_synthetic": 3.0}
    told[-1] |= {"synthetic": 0.5, "won_logged": 0.25, "won_written": 0.75, "value_logged": 0.125, "value_written": 0.1875}
    write_atomic(full_run / "policy_run/metrics.jsonl", "".join(json.dumps(m) + "\n" for m in told))
    page = section(write_report(full_run).read_text(encoding="utf-8"), "tasks")
    text = text_of(page)
    assert "written into its world: [shelf] <i>kiwi</i>: ripe" in text
    assert "Logged and written tasks" in page
    assert "<title>dreamed success, written tasks" in page
    assert "dreamed: mean value over 0.25, written tasks" in page
    assert "logged 2 2 dreamed 0.12" in text, "two logged tasks, both played, mean value of 0.25 and 0"
    assert "written, children of logged ones 2 1" in text, "one of them has not been played"
    assert "written, grandchildren 1 0" in text
    assert "Written tasks: how many, and how old" in page
    assert "hindsight; done by: open <b>box</b>, take plum" in text
    family = text_of(page.partition("Tasks with most children")[2])
    assert family.split("dreamed")[0].count("find the <b>carrot</b>") == 1, "a parent stands beside its first child"
    assert "find the plum dreamed – dreamed –" in " ".join(family.split()), "its value is its parent's until it is played"
    assert "find the pear" not in family, "an only child is no family"
    shown = re.sub(r"<span class=\"dreamed\".*?</span>|<title>dreamed.*?</title>|<svg.*?</svg>", "", page, flags=re.S)
    assert "dreamed 75.0 %" in page
    assert not re.search(r"75\.0 %|0\.12|0\.188|0\.25<", shown), "what the dream says of them is marked as dreamed"
    assert "What became of 4 drafts" in text
    assert "names what is not in its world 2" in text
    assert "find the tomato find the <b>carrot</b>" in text
    assert "<script>" not in page.partition("What became of")[2]
