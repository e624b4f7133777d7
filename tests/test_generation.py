"""Batched generation: every row says what the model alone would, however rows come, end and take each other's place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from transformers import DynamicCache, MistralConfig, MistralForCausalLM  # noqa: E402

from dreamgym.core.errors import ConfigError  # noqa: E402
from dreamgym.lm.cache import STEP, join, roomy_cache  # noqa: E402
from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.tiny import tiny_llama, train_tokenizer  # noqa: E402

WORDS = " the cat sat on the mat and the dog ran to the red barn"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS] * 40, 300)


def llama(tokenizer):
    return LocalLM(tiny_llama(len(tokenizer), 0, width=32, layers=2), tokenizer)


def mistral(tokenizer):
    """With a window shorter than its prompts: layers that do not keep room."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LocalLM(MistralForCausalLM(config), tokenizer)


@pytest.mark.parametrize("build", [llama, mistral])
def test_what_is_generated_has_the_probability_that_the_model_alone_gives_it(tokenizer, build):
    lm = build(tokenizer)
    rng = np.random.default_rng(0)
    prompts = [[int(i) for i in rng.integers(3, len(tokenizer), rng.integers(1, 30))] for _ in range(19)]  # two passes of unequal length
    prompts += prompts[3:9]  # a group asks alike
    with torch.no_grad():  # ends come often, at many different steps
        lm.model.get_output_embeddings().weight[lm.eos] *= 4.0
    budget = STEP + 20
    replies = lm.generate(prompts, budget, 1.3, [np.random.default_rng(i) for i in range(len(prompts))])
    lengths = {len(r.ids) for r in replies}
    assert len(lengths) > 5, "rows end at many steps"
    assert max(lengths) > STEP, "some outgrow the room"
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply.finished == (reply.ids[-1] == lm.eos)
        assert reply.finished or len(reply.ids) == budget
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*prompt, *reply.ids]])).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits / 1.3, -1).gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(reply.logprobs), logp, atol=0.05, rtol=0.02)  # prompts are read in 16 bit


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_roomy_cache_holds_what_the_one_of_transformers_holds(tokenizer, data):
    config = llama(tokenizer).model.config
    torch.manual_seed(0)
    parts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3), label="rows of each prompt batch")
    prompts = [torch.randn(2, rows, 2, 5, 4).bfloat16() for rows in parts]
    read = []
    for keys, values in prompts:
        read.append(roomy_cache(config))
        for layer in range(2):
            read[-1].update(keys, values, layer)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, sum(parts) - 1), min_size=1, max_size=6), label="rows asked for"))
    ours, theirs = join(read, rows, torch.float32), DynamicCache(config=config)
    for layer in range(2):
        theirs.update(*(torch.cat([p[kind] for p in prompts])[rows] for kind in (0, 1)), layer)
    live = len(rows)
    for ended in data.draw(st.lists(st.booleans(), max_size=STEP + 10), label="whether a row ends before the next token"):
        if ended and live > 1:
            live -= 1
            order = torch.tensor(data.draw(st.permutations(range(live + 1)), label="who stays where")[:live])
            ours.batch_select_indices(order)
            theirs.batch_select_indices(order)
        keys, values = torch.randn(2, live, 2, 1, 4)
        for layer in range(2):
            seen, wanted = ours.update(keys, values, layer), theirs.update(keys, values, layer)
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(seen, wanted, strict=True))
    assert ours.get_seq_length() == theirs.get_seq_length()


def test_more_than_a_model_was_made_for_is_refused_by_name(tokenizer):
    lm = llama(tokenizer)
    assert len(lm.generate([[5] * 2040], 8)) == 1
    with pytest.raises(ConfigError, match="a prompt of 2041 tokens and a reply of up to 8 do not fit the 2048"):
        lm.generate([[5], [5] * 2041], 8)
