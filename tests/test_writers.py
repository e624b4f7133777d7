"""Who writes tasks: the local model, a chat model, and failed episodes; and that a run in which they write resumes exactly."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace

import pytest

from dreamgym.core.grammar import render_variation
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Feat, StopReason, Task
from dreamgym.curriculum.config import GeneratorConfig

pytest.importorskip("torch", reason="needs the extra [train]")
from test_generator import FOODS, LOGGED, TASKS, VALUES, Drafts

from dreamgym.curriculum.generator import TaskGenerator
from dreamgym.curriculum.worlds import Lack, LoggedWorlds, Placed, placed
from dreamgym.curriculum.writing import Asked, LocalWriter, writing_trees
from dreamgym.lm.fit import FitConfig, fit
from dreamgym.lm.local import LocalLM
from dreamgym.lm.tiny import tiny_llama, train_tokenizer
from dreamgym.pipeline import player
from dreamgym.pipeline.config import Curriculum


def test_a_feat_that_takes_longer_than_an_episode_may_be_is_none(monkeypatch):
    monkeypatch.setattr(player, "task_writer", lambda model: Drafts())
    feat = Feat("cook carrot", ("take carrot",) * 5)
    for cap, found in ((5, feat), (4, None)):
        adapter = SimpleNamespace(cap=cap, achieved=lambda task, episode: feat)
        _, achieved = player.task_generator(None, adapter, LOGGED, Curriculum(synthetic=0.5, hindsight=True), 0)
        assert achieved(LOGGED[0], None) == found


def test_a_tiny_model_learns_to_write_tasks_of_its_world(tmp_path):
    texts = [render_variation([t.instruction], t.sheet, t.first_state) + " " + t.instruction for t in LOGGED] + ["@like @new @sheet"]
    tokenizer = train_tokenizer([f" {t}" for t in texts] * 10, 400)
    lm = LocalLM(tiny_llama(len(tokenizer), 0, width=64, layers=2), tokenizer)
    trees = writing_trees(lm, LOGGED, 3, 20, 0)
    assert len(trees) == 1200
    fit(lm.model, trees, FitConfig(epochs=10, learning_rate=3e-3, rows=4), tmp_path)
    lm.model.eval()
    config = GeneratorConfig(parents=30, drafts=3)
    found = TaskGenerator(LocalWriter(lm), LOGGED, config, 0).vary(TASKS, VALUES, 0)
    again = TaskGenerator(LocalWriter(lm), LOGGED, config, 0).vary(TASKS, VALUES, 0)
    assert found == again, "every draw is keyed"
    verdicts = Counter(d.verdict.partition(":")[0] for d in found)
    assert verdicts["malformed"] + verdicts["unreadable"] < 0.1 * len(found)
    new = [d.task for d in found if d.task]
    assert len({t.id for t in new}) == len(new) > 5
    assert all(any(f in t.instruction for f in FOODS) for t in new)
    worlds = LoggedWorlds(LOGGED)
    lacks = [(t, f) for t in LOGGED for f in FOODS if placed(t, f) is None]
    written = LocalWriter(lm).furnish([Lack(f, t, worlds.alike(t, f), ("a", t.id, f)) for t, f in lacks])
    fit_in = [isinstance(worlds.furnished(t, f, w), Task) for (t, f), w in zip(lacks, written, strict=True)]
    assert sum(fit_in) > 0.8 * len(lacks)


def test_a_chat_model_writes_and_picks_over_http():
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from benchmarks.loopback import LoopbackServer, sections
    from dreamgym.curriculum.asking import ChatWriter
    from dreamgym.endpoint.client import Endpoint
    from dreamgym.endpoint.config import EndpointConfig

    calls = Counter[str]()

    def answer(body):
        read = sections(body["messages"][-1]["content"])
        calls["pick" if "Drafts" in read else "write"] += 1
        if "Drafts" in read:
            assert read["Original"] == ["cook carrot fried"]
            assert sorted(d.partition(" ")[2] for d in read["Drafts"]) == ["cook carrot boiled", "cook lime boiled"]
            return json.dumps({"reasoning": "it is new", "selection": 1 + ("lime" in read["Drafts"][1])})
        assert read["Also"] == ["[fridge] lime: raw"]
        assert body["temperature"] == 1.0, "drafts are to differ"
        if calls["write"] == 1:
            return "cook lime boiled"  # no JSON: asked again
        return json.dumps({"task": ("cook carrot boiled", "cook lime boiled <|im_end|>\n", "cook lime boiled")[calls["write"] % 3]})

    with LoopbackServer(answer) as server:
        writer = ChatWriter(Endpoint(EndpointConfig(base_url=server.url, model="m", concurrency=1)))
        values = {"t/0": VALUES["t/0"]}
        found = TaskGenerator(writer, LOGGED, GeneratorConfig(drafts=3), 0).vary({"t/0": TASKS["t/0"]}, values, 0)
    assert [d.task.instruction for d in found if d.task] == ["cook lime boiled"]
    assert {d.verdict for d in found} == {"kept", "malformed", "another draft was chosen"}
    assert calls == {"write": 4, "pick": 1}


def test_a_chat_model_writes_what_a_world_lacks_over_http():
    pytest.importorskip("openai", reason="needs the extra [endpoint]")
    from benchmarks.loopback import LoopbackServer, sections
    from dreamgym.curriculum.asking import ChatWriter
    from dreamgym.endpoint.client import Endpoint
    from dreamgym.endpoint.config import EndpointConfig

    seen = list[dict[str, list[str]]]()

    def answer(body):
        read = sections(body["messages"][-1]["content"])
        if "Missing" in read:
            seen.append(read)
            return json.dumps({"in_sight": False, "place": "fridge", "description": "raw\n"})
        if "Drafts" in read:
            possible = read.get("Added") == ["[fridge] egg: raw"] and "egg" in read["Drafts"][0]
            return json.dumps({"reasoning": "egg is there now" if possible else "no egg", "selection": int(possible)})
        return json.dumps({"task": "cook egg fried"})

    with LoopbackServer(answer) as server:
        writer = ChatWriter(Endpoint(EndpointConfig(base_url=server.url, model="m", concurrency=1)))
        generator = TaskGenerator(writer, LOGGED, GeneratorConfig(drafts=1), 0)
        [draft] = generator.vary({"t/0": TASKS["t/0"]}, {"t/0": VALUES["t/0"]}, 0)
    assert (draft.verdict, draft.furnished) == ("kept", ("[fridge] egg: raw",))
    assert seen[0]["Missing"] == ["egg"]
    assert seen[0]["Also"] == ["[fridge] lime: raw"], "of the world that lacks it"


def failed(name: str, at: Task, stop: StopReason = StopReason.LOST) -> Episode:
    return Episode(id=name, env="dream", task=at, source="dream", behaviour="policy", transitions=(), stop=stop)


def test_what_failed_episodes_did_achieve_becomes_a_task():
    said = {"a": "cook lime roasted", "b": "cook lime fried", "c": None, "d": "cook unicorn", "e": "cook carrot fried"}
    told = {name: text and Feat(text, (f"do {name}",)) for name, text in said.items()}
    episodes = [failed(name, TASKS["t/0"]) for name in told]
    episodes += [failed("won", TASKS["t/0"], StopReason.WON), failed("broken", TASKS["t/0"], StopReason.INVALID_REPLY)]
    generator = TaskGenerator(Drafts(), LOGGED, GeneratorConfig(parents=5), 0)
    found = generator.hindsight(episodes, lambda task, e: told[e.id], TASKS, 4)
    verdicts = {next(name for name, text in said.items() if text == d.instruction): d.verdict for d in found}
    assert {"a", "b"} & set(verdicts), "of one world one is kept"
    assert [(d.seeds, d.solution) for d in found if d.task] == [((TASKS["t/0"].instruction,), (f"do {min({'a', 'b'} & set(verdicts))}",))]
    assert list(verdicts.values()).count("kept") == 1
    assert verdicts.get("d", "malformed") == "malformed"
    assert verdicts.get("e", "like another task of its world") == "like another task of its world"
    assert [d.task.lineage for d in found if d.task] == [("t/0",)]
    elsewhere = [*episodes, failed("f", TASKS["t/7"])]
    told["f"] = Feat("cook egg fried", ("do f",))
    assert len([d for d in generator.hindsight(elsewhere, lambda task, e: told[e.id], TASKS, 4) if d.task]) == 2
    only = TaskGenerator(Drafts(), LOGGED, GeneratorConfig(parents=1), 0).hindsight(elsewhere, lambda t, e: told[e.id], TASKS, 4)
    assert len([d for d in only if d.task]) == 1


def test_a_run_that_writes_tasks_resumes_exactly(tmp_path):
    from vault_model import VaultModel

    from dreamgym.core.env import RealSteps
    from dreamgym.curriculum.config import SamplerConfig
    from dreamgym.pipeline.learn import warm_start
    from dreamgym.pipeline.logs import tasks_of
    from dreamgym.pipeline.rl_run import RLRun
    from dreamgym.replay.buffer import ReplayBuffer
    from dreamgym.replay.contract import Query
    from dreamgym.replay.enrichment import Enriched
    from dreamgym.rl.config import RLConfig
    from examples.own_environment import COLOURS, adapter

    episodes = list(adapter.collect(RealSteps(), 40, 0))
    texts = [" ".join((e.task.instruction, *t.state, *t.added, t.action)) for e in episodes for t in e.transitions]
    tokenizer = train_tokenizer(texts, 400)
    LocalLM(tiny_llama(len(tokenizer), 0, width=64, layers=2), tokenizer).save(tmp_path / "base")
    demos = [e for e in episodes if e.behaviour == "expert" and e.stop is StopReason.WON]
    warm_start(tmp_path / "base", demos, FitConfig(learning_rate=3e-3, epochs=60, row_length=256, rows=4), tmp_path / "sft")
    told_key = {t.id: f"{t.instruction} with {t.instruction.split()[2]}_key" for t in tasks_of(episodes).values()}
    tasks = {n: t.model_copy(update={"instruction": told_key[n]}) for n, t in tasks_of(episodes).items()}

    class Painter(Drafts):
        """Paints the doors, and puts the key that they need then into a chest."""

        def write(self, asked: Sequence[Asked]) -> list[str | None]:
            drawn = [COLOURS[keyed_rng(*a.key).integers(len(COLOURS))] for a in asked]
            return [f"unlock the {c} door with {c}_key" for c in drawn]

        def furnish(self, lacking: Sequence[Lack]) -> list[Placed | None]:
            return [Placed("sheet", "chest", "metal") for _ in lacking]

    class Reading(VaultModel):
        """Looks similar experiences up, as a model that reads them does."""

        def _one(self, r):
            if self.retrieval is not None:
                self.retrieval.topk([Query(r.state, r.action)], 1)
            return super()._one(r)

    def a_run(name: str, replay: Enriched | None = None) -> RLRun:
        generator = TaskGenerator(Painter(), list(tasks.values()), GeneratorConfig(parents=3, drafts=2), 0)
        config = RLConfig(tasks=6, group=4, learning_rate=1e-3, iterations=4)
        choose = SamplerConfig(synthetic=0.5)
        model, counter = Reading(), RealSteps()
        return RLRun(tmp_path / "sft", config, tasks, adapter, tmp_path / name, model, replay, counter, choose=choose, generator=generator)

    def told(run: RLRun) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = []
        with suppress(KeyboardInterrupt):
            run.run(lambda m: metrics.append({k: v for k, v in m.items() if not k.endswith("_s")}))
        return metrics

    whole = a_run("whole")
    metrics = told(whole)
    assert sum(m.get("tasks_written", 0) for m in metrics) >= 3
    played_both = [m for m in metrics if {"won_logged", "won_written", "value_logged", "age_written"} <= m.keys()]
    assert played_both
    assert all(0 <= m["won_written"] <= 1 and m["age_written"] >= 0 for m in played_both)
    played = [json.loads(line)["task"] for line in (tmp_path / "whole" / "episodes.jsonl").read_text().splitlines()]
    children = {t["id"]: t["lineage"] for t in played if t.get("lineage")}
    assert children, "written tasks are played"
    assert all(lineage[0] in tasks for lineage in children.values())
    killed = a_run("halves")
    dump, done = killed._dump, list[int]()

    def torn(episodes: Sequence[Episode]) -> None:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt  # its drafts are written down, its checkpoint is not
        dump(episodes)

    killed._dump = torn  # type: ignore[method-assign]
    first = told(killed)
    assert len(first) == 2
    assert first + told(a_run("halves")) == metrics
    assert a_run("halves").sampler.state_dict() == a_run("whole").sampler.state_dict()
    files = [(tmp_path / name / "tasks.jsonl").read_text() for name in ("whole", "halves")]
    assert files[0] == files[1]
    drafts = [json.loads(line) for line in files[0].splitlines()]
    placed_in = {d["task"]: d["furnished"] for d in drafts if d["verdict"] == "kept" and d["furnished"]}
    assert placed_in.keys() & children.keys(), "what a world lacked was written into it, and the task was played"
    assert {"parent", "seeds", "instruction", "verdict", "parent_value", "iteration", "task"} <= set(drafts[0])
    small = Enriched(ReplayBuffer(), capacity=20)
    small.buffer.add(episodes[:3])
    found = told(a_run("small", small))
    assert sum(m["buffer_evicted"] for m in found) > len(small), "more has gone than is left, so that room was made"
    assert [m["tasks_written"] for m in found if "tasks_written" in m]
