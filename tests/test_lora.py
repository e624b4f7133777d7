"""A policy with LoRA: only the adapter is trained and saved, it learns, and goes on exactly where it was."""

import json
from statistics import fmean

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("gymnasium", reason="needs the extra [gym]")

from command import SMALL, dreamgym  # noqa: E402
from test_chat_sft import tiny  # noqa: E402
from test_trainer import ALGORITHMS, TASKS, a_trainer, start  # noqa: E402, F401

from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.lora import Lora  # noqa: E402


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_only_the_adapter_learns_and_resumes_exactly(start, tmp_path, algorithm):  # noqa: F811
    torch.set_num_threads(1)
    begun, base, kept = a_trainer(start, {}), tmp_path / "base", tmp_path / "kept"
    for _ in range(6):  # beside random frozen weights there is nothing that an adapter could steer
        begun.iterate(TASKS)
    begun.lm.save(base)
    lm = LocalLM.load(base, Lora(r=8, alpha=16))
    frozen = {n: p.clone() for n, p in lm.model.named_parameters() if not p.requires_grad}
    assert frozen
    keys = {**ALGORITHMS.get(algorithm, {}), "learning_rate": 5e-3}
    lm.save(tmp_path / "sft")
    trainer = a_trainer(tmp_path / "sft", keys, lm=lm)
    critics = [] if trainer.critic is None else [p.clone() for p in trainer.critic.model.parameters() if not p.requires_grad]
    for n in range(14):
        if n == 11:
            trainer.save(kept)
        trainer.iterate(TASKS)
    rewards = [m["reward"] for m in trainer.progress.metrics]
    assert fmean(rewards[-5:]) > rewards[0] + 0.1
    assert all(m["sampler_gap"] < 0.05 for m in trainer.progress.metrics)
    assert all(torch.equal(p, frozen[n]) for n, p in lm.model.named_parameters() if n in frozen)
    assert (kept / "adapter_model.safetensors").exists()
    assert not (kept / "model.safetensors").exists()

    if trainer.critic is not None:
        kept_out = [p for p in trainer.critic.model.parameters() if not p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(critics, kept_out, strict=True))
        losses = [m["value_loss"] for m in trainer.progress.metrics]
        assert fmean(losses[-3:]) < 0.5 * losses[0], "the critic learns what is to be expected"
        assert (kept / "critic" / "adapter_model.safetensors").exists()
        assert not (kept / "critic" / "model.safetensors").exists()

    again = a_trainer(tmp_path / "sft", keys, lm=LocalLM.load(kept))
    again.resume(kept)
    for _ in range(3):
        again.iterate(TASKS)
    for a, b in zip(again.lm.trained, lm.trained, strict=True):
        assert torch.equal(a, b)
    if trainer.critic is not None and again.critic is not None:
        for a, b in zip(again.critic.trained, trainer.critic.trained, strict=True):
            assert torch.equal(a, b)


def test_a_critic_beside_a_bf16_base_comes_back_exactly(start, tmp_path):  # noqa: F811
    """As on an accelerator, whose frozen base is in bf16; on the processor all is in float32."""
    from dreamgym.rl.critic import _adapter

    torch.manual_seed(0)
    LocalLM.load(start, Lora(r=8, alpha=16)).save(tmp_path / "sft")
    first, known = _adapter(str(tmp_path / "sft"), torch.bfloat16)
    assert not known
    learnt = {n: p for n, p in first.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learnt.values()} == {torch.float32}
    with torch.no_grad():
        for p in learnt.values():
            p += torch.randn_like(p)
    first.save_pretrained(str(tmp_path / "critic"))
    again, known = _adapter(str(tmp_path / "critic"), torch.bfloat16)
    assert known
    assert all(torch.equal(p, learnt[n]) for n, p in again.named_parameters() if p.requires_grad)


def test_layers_are_computed_again_without_dropout(start, monkeypatch):  # noqa: F811
    monkeypatch.setattr("dreamgym.rl.trainer.recompute", lambda model: None)
    taken = []
    for again in (False, True):
        if again:
            monkeypatch.undo()
        torch.manual_seed(0)
        trainer = a_trainer(start, {"learning_rate": 5e-3, "passes": 1, "updates": 1}, lm=LocalLM.load(start, Lora(r=4, dropout=0.5)))
        trainer.optimizer.step = lambda lm=trainer.lm: taken.append([p.grad.clone() for p in lm.trained])
        trainer.iterate(TASKS)
    assert sum(float(g.abs().sum()) for g in taken[0]) > 0
    for a, b in zip(*taken, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "advantage"), [("qwen2", "group"), ("llama", "gae")])
def test_a_run_with_a_chat_model_and_lora(tmp_path, kind, advantage):
    base, run = tiny(tmp_path / "base", kind), tmp_path / "run"
    small = [w for w in SMALL if not w.startswith(("base=", "rl.iterations", "sft.fit"))]
    small += [f"base={base}", "rl.iterations=2", "sft.fit.epochs=2", "sft.fit.row_length=1024", "rl.row_length=1024", "collect_tasks=30"]
    small += ["experience.fit.row_length=1024", "experience.fit.epochs=0.1", "policy.preset=paper", "policy.tokens=48"]
    small += ["policy.lora={r: 4}", f"rl.advantage={advantage}"]
    done = dreamgym("train", "--run", str(run), *small)
    assert done.returncode == 0, done.stdout
    for folder in ("sft", "policy"):
        assert (run / folder / "adapter_model.safetensors").exists()
        assert json.loads((run / folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert json.loads((run / "stages" / "train.json").read_text())["iterations"] == 2
