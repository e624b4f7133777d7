"""Append-only transcripts: nothing is rendered again, what is kept from turn to turn changes nothing, and a policy learns in them."""

import contextlib
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from command import SMALL, dreamgym  # noqa: E402
from test_chat_sft import tiny  # noqa: E402
from test_generation import llama, mistral, tokenizer  # noqa: E402, F401
from test_trainer import TASKS, TwoLetters, start  # noqa: E402, F401

from dreamgym.core.types import Transition  # noqa: E402
from dreamgym.lm.cache import Memory  # noqa: E402
from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.packing import IGNORED, Segment, Tree, collate, pack  # noqa: E402
from dreamgym.rl.config import RLConfig  # noqa: E402
from dreamgym.rl.context import ChatTranscript, Context, Transcript, Turn  # noqa: E402
from dreamgym.rl.policy import Policy  # noqa: E402
from dreamgym.rl.rollout import rollouts  # noqa: E402
from dreamgym.rl.trainer import Trainer, policy_trees  # noqa: E402


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), turns=st.integers(1, 5), rows=st.integers(1, 20))
def test_what_is_kept_from_turn_to_turn_changes_nothing(tokenizer, seed, turns, rows):  # noqa: F811
    lm, rng, memory = llama(tokenizer), np.random.default_rng(seed), Memory()
    with torch.no_grad():  # replies of many lengths
        lm.model.get_output_embeddings().weight[lm.eos] *= 3.0
    said = [() for _ in range(rows)]
    budget, read = 6, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # 16 bit would hide a wrong position
        for _ in range(turns):
            longest = 12 if rng.random() < 0.8 else 90
            here = [i for i in range(rows) if rng.random() < 0.8] or [0]  # some episodes have ended, or wait
            asked = [(*said[i], *(int(x) for x in rng.integers(3, len(tokenizer), rng.integers(1, longest)))) for i in here]
            asked += asked[:1]  # two members that are the same so far
            known = [len(said[i]) for i in here] + [len(said[here[0]])]
            draws = [[np.random.default_rng((seed, i)) for i in range(len(asked))] for _ in range(2)]
            before = lm.tokens_in
            kept = lm.generate(asked, budget, 1.0, draws[0], memory, known)
            read.append((lm.tokens_in - before) / longest)
            fresh = lm.generate(asked, budget, 1.0, draws[1])
            assert [g.ids for g in kept] == [g.ids for g in fresh]
            for a, b in zip(kept, fresh, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)
            for i, prompt, g in zip(here, asked, kept, strict=False):
                said[i] = (*prompt, *g.ids)
    assert all(n <= rows + 1 for n in read), "only what is new, and the token before it, is read"


def test_many_may_go_on_from_what_one_said(tokenizer):  # noqa: F811
    lm, memory = llama(tokenizer), Memory()
    first = lm.generate([[5, 6, 7]], 4, memory=memory, known=[0])[0]
    said = (5, 6, 7, *first.ids)
    asked = [[*said, 3 + n] for n in range(40)]
    kept, fresh = lm.generate(asked, 4, memory=memory, known=[len(said)] * 40), lm.generate(asked, 4)
    assert [g.ids for g in kept] == [g.ids for g in fresh]
    lm.generate([[5, 6, 7]], 4, memory=memory, known=[0])
    long = [[*said, *rng.integers(3, 250, 1500).tolist()] for rng in map(np.random.default_rng, range(2))]
    kept, fresh = lm.generate(long, 4, memory=memory, known=[len(said)] * 2), lm.generate(long, 4)
    assert [g.ids for g in kept] == [g.ids for g in fresh], "fewer prompts than passes that their length would fill"
    for n in range(9):
        lm.generate([[5, 6, 7, 8 + n]] * 2, 4, memory=memory, known=[0, 0])
    assert len(memory.kept) <= 80


def test_a_model_that_forgets_is_asked_anew(tokenizer):  # noqa: F811
    lm, memory = mistral(tokenizer), Memory()
    first = lm.generate([[5, 6, 7]], 4, memory=memory, known=[0])[0]
    assert not memory.kept
    said = (5, 6, 7, *first.ids)
    assert lm.generate([[*said, 8]], 4, memory=memory, known=[len(said)]) == lm.generate([[*said, 8]], 4)


def test_a_chain_is_the_sequence_that_it_is(tokenizer):  # noqa: F811
    lm = llama(tokenizer)
    rng = np.random.default_rng(1)
    ids = [int(i) for i in rng.integers(3, len(tokenizer), 40)]
    segments = (Segment(tuple(ids[9:16]), 3, 0.5), Segment(tuple(ids[16:25]), 0), Segment(tuple(ids[25:40]), 6, -1.0))
    chain = Tree(tuple(ids[:9]), segments, chain=True)
    other = Tree(tuple(ids[:5]), (Segment(tuple(ids[5:9]), 2), Segment(tuple(ids[9:12]), 1)))
    batch = collate(pack([other, chain], 80), lm.pad, policy=True)
    with torch.no_grad():
        packed = lm.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=batch["attention_mask"]).logits
        alone = lm.model(input_ids=torch.tensor([ids])).logits[0]
    at = [int(i) for i in torch.nonzero(batch["labels"][0] != IGNORED)[:, 0]][3:]
    trained = [13, 14, 15, 34, 35, 36, 37, 38, 39]
    assert [int(batch["labels"][0, i]) for i in at] == [ids[i] for i in trained]
    torch.testing.assert_close(packed[0, [i - 1 for i in at]], alone[[i - 1 for i in trained]], atol=1e-4, rtol=1e-4)
    assert [r.length for r in pack([chain, other], 32)] == [40, 12], "an episode is never cut"


def conversation(lm: LocalLM, context: Context, replies: list[tuple[int, ...]]) -> list[list[int]]:
    states = [(f"[room] thing {i}: seen <|im_end|> @do",) for i in range(len(replies) + 1)]
    said, past, prompts = (), (), []
    for i, reply in enumerate([*replies, ()]):
        [prompt] = context.prompts(lm, [Turn("find it", states[i], (), past, said)])
        assert prompt[: len(said)] == list(said), "nothing is rendered again"
        said = (*prompt, *reply)
        after = states[i + 1] if reply else ()
        past += (Transition(state=states[i], action="go", removed=states[i], added=after, reward=0.0, outcome="go"),)
        prompts.append(prompt)
    return prompts


def test_a_conversation_goes_on_as_the_template_has_it(tmp_path):
    lm = LocalLM.load(tiny(tmp_path / "base", "llama"))
    context, reply = ChatTranscript(), lm.encode("<think></think><action>go</action>")
    prompts = conversation(lm, context, [(*reply, lm.eos), tuple(reply[:4]), (*reply, lm.eos)])
    first, second, third, _ = prompts
    template = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "AAA"}, {"role": "assistant", "content": "BBB"}, {"role": "user", "content": "CCC"}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    between = template.split("BBB")[1].split("CCC")[0]
    joint = lm.tokenizer.decode(second[len(first) + len(reply) :], skip_special_tokens=False)
    assert joint.startswith(between)
    assert third[len(second) + 4] == lm.eos, "a reply that was cut is ended"
    assert sum(p == lm.eos for p in third) == sum(p == lm.eos for p in second) + second.count(lm.eos) - first.count(lm.eos)


def test_the_small_transcript_appends_what_changed(tokenizer):  # noqa: F811
    lm = llama(tokenizer)
    prompts = conversation(lm, Transcript(), [(5, lm.eos), (6, 7, lm.eos)])
    assert lm.decode(prompts[1][len(prompts[0]) + 2 :]).startswith(" @del")
    assert lm.decode(prompts[2]).count("@task") == 1


def a_trainer(start, lm, iterations=14):  # noqa: F811
    config = RLConfig(iterations=iterations, group=16, learning_rate=2e-2, row_length=256)

    def play(seats):
        return rollouts(Policy(lm, 1.0, context=Transcript()), lambda *_: TwoLetters(), seats, "real", "letters")

    return Trainer(lm, config, play, start)


def test_a_policy_learns_in_its_transcripts_and_resumes_exactly(start, tmp_path):  # noqa: F811
    torch.set_num_threads(1)
    trainer = a_trainer(start, LocalLM.load(start))
    for n in range(14):
        if n == 12:
            trainer.save(tmp_path)
        played = trainer.iterate(TASKS)[0]
    rewards = [m["reward"] for m in trainer.progress.metrics]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.3
    assert all(m["sampler_gap"] < 0.05 for m in trainer.progress.metrics), "the trainer sees what was sampled from"
    trees = policy_trees([(r, [1.0] * len(r.samples)) for r in played])
    long = [r for r in played if len(r.samples) > 1]
    assert sum(t.chain for t in trees) == len(long)
    assert {len(t) for t in trees if t.chain} == {len(r.samples[-1].prompt) + len(r.samples[-1].ids) for r in long}, "each token once"
    again = a_trainer(start, LocalLM.load(tmp_path))
    again.resume(tmp_path)
    for _ in range(2):
        again.iterate(TASKS)
    for a, b in zip(again.lm.trained, trainer.lm.trained, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_a_run_with_transcripts(tmp_path, small_start, preset):
    run, small = tmp_path / "run", [*SMALL, "rl.iterations=2", "policy.context=transcript", "rl.row_length=1024", "sft.fit.row_length=1024"]
    if preset == "paper":
        small = [w for w in small if not w.startswith(("base=", "sft.fit.epochs"))]
        small += [f"base={tiny(tmp_path / 'base', 'qwen2')}", "sft.fit.epochs=2", "policy.preset=paper", "policy.tokens=48"]
        small += ["experience.fit.row_length=1024", "experience.fit.epochs=0.1", "rl.row_length=4096"]
    done = dreamgym("train", "--run", str(run), "--from", str(small_start), *small)
    assert done.returncode == 0, done.stdout
    evaluated = dreamgym("eval", "--run", str(run))
    assert evaluated.returncode == 0, evaluated.stdout
