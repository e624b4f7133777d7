"""In how many bits models compute: as many as the hardware is fast in."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.lm import precision  # noqa: E402
from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.tiny import tiny_llama, train_tokenizer  # noqa: E402
from dreamgym.rl.config import RLConfig  # noqa: E402
from dreamgym.rl.critic import Critic  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_tokenizer([" the cat sat on the mat and the dog ran to the red barn"] * 40, 300)
    return LocalLM(tiny_llama(len(tokenizer), 0, width=32, layers=2), tokenizer)


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_in_16_bits_where_the_hardware_has_them(monkeypatch, has, dtype):
    monkeypatch.setattr(precision, "has_bfloat16", lambda place: has)
    with precision.short(CPU):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_who_has_them():
    """An accelerator; of x86, what has AVX-512 (PyTorch names what a CPU can do)."""
    assert precision.has_bfloat16(torch.device("cuda"))
    can = torch.backends.cpu.get_cpu_capability()
    if can not in ("AVX2", "AVX512"):
        pytest.skip(f"neither AVX2 nor AVX512 but {can}")
    assert precision.has_bfloat16(CPU) == (can == "AVX512")


def test_where_it_has_none_a_prompt_is_read_as_the_model_alone_reads_it(monkeypatch, lm):
    prompt = [3, 7, 5, 9, 4, 8] * 4
    alone = lm.model(torch.tensor([prompt])).logits[0, -1].detach().log_softmax(-1)
    told = {}
    for has in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda place, has=has: has)
        told[has] = lm.generate([prompt], 1)[0].logprobs[0]
    assert told[False] == pytest.approx(float(alone.max()), abs=1e-5)
    assert told[True] == pytest.approx(float(alone.max()), abs=0.05)
    assert told[True] != told[False]


def test_where_it_has_none_values_are_those_of_the_critic_alone(monkeypatch, lm, tmp_path):
    lm.save(tmp_path)
    critic = Critic(tmp_path, RLConfig(advantage="gae"), lm.pad)
    with torch.no_grad():
        critic.model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    alone = float(critic.model(torch.tensor([[3, 7, 5, 9]])).logits[0, -1, 0].detach())
    monkeypatch.setattr(precision, "has_bfloat16", lambda place: False)
    assert critic.values([(3, 7, 5, 9)]) == pytest.approx([alone], abs=1e-5)
