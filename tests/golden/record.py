"""Golden vectors: what verl's ``core_algos`` and TRL's ``GRPOTrainer`` compute for random rewards and log-probabilities.

    make oracles        # in an environment of its own: computes them anew and compares with the committed files

``python tests/golden/record.py verl|trl [--check]`` writes ``verl.json`` / ``trl.json`` beside this file, or (``--check``) says
whether what the installed version computes is what is written there.
"""

import json
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
SEEDS = 4
SEQUENCES, TOKENS = 8, 6
CLIPS = {"ppo": (0.2, 0.2), "dapo": (0.2, 0.28)}


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Eight sequences of up to six tokens in groups of four: log-probabilities, advantages, values, rewards, mask."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, TOKENS + 1, SEQUENCES)
    mask = torch.tensor((np.arange(TOKENS) < lengths[:, None]).astype(np.float64))

    def draw(scale: float) -> torch.Tensor:
        return torch.tensor(rng.normal(0, scale, (SEQUENCES, TOKENS))) * mask

    old = -draw(1.0).abs()
    return {
        "mask": mask,
        "old": old,
        "logp": old + draw(0.5),
        "reference": old + draw(0.5),
        "sampled": old + draw(0.3),
        "advantages": torch.tensor(rng.normal(0, 1, (SEQUENCES, 1))) * mask,
        "values": draw(0.5),
        "predicted": draw(0.5),
        "rewards": torch.tensor(rng.choice([0.0, 0.25, 1.0], (SEQUENCES, TOKENS))) * mask,
        "outcome": torch.tensor(rng.choice([0.0, 1.0], SEQUENCES)),
        "logits": torch.tensor(rng.normal(0, 2, (SEQUENCES, TOKENS, 5))),
    }


def verl(b: dict[str, torch.Tensor]) -> dict[str, object]:
    from verl.trainer.ppo import core_algos as algos
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
    from verl.workers.config import ActorConfig

    last = torch.zeros_like(b["mask"])
    last[:, 0] = b["outcome"]
    index = np.array([i // 4 for i in range(SEQUENCES)])
    found: dict[str, object] = {}
    for name, scaled in (("group_sample", True), ("group_none", False)):
        found[name] = algos.compute_grpo_outcome_advantage(last, b["mask"], index, 0.0, scaled)[0][:, 0]
    found["leave_one_out"] = algos.compute_rloo_outcome_advantage(last, b["mask"], index)[0][:, 0]
    found["gae"], found["returns"] = algos.compute_gae_advantage_return(b["rewards"], b["values"], b["mask"], 0.9, 0.8)
    for name, (low, high) in CLIPS.items():
        for how in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
            for dual in (3.0, 1e9):
                clips = {"clip_ratio": low, "clip_ratio_low": low, "clip_ratio_high": high, "clip_ratio_c": dual}
                config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **clips)
                logp = b["logp"].clone().requires_grad_()
                loss, _ = algos.compute_policy_loss_vanilla(b["old"], logp, b["advantages"], b["mask"], how, config)
                loss.backward()
                found[f"{name} {how} {'dual' if dual < 9 else 'plain'}"] = {"loss": loss, "gradient": logp.grad}
    weights = compute_rollout_correction_weights(b["old"] - b["sampled"], b["mask"], "token", 1.3)[0]
    found["importance"] = weights * b["mask"]
    for name in ("k2", "k3"):
        found[name] = algos.kl_penalty(b["logp"], b["reference"], name) * b["mask"]
    found["value_loss"] = algos.compute_value_loss(b["predicted"], b["rewards"], b["values"], b["mask"], 0.2)[0]
    found["entropy"] = algos.compute_entropy_loss(b["logits"], b["mask"])
    return found


def trl(b: dict[str, torch.Tensor]) -> dict[str, object]:
    from trl import GRPOTrainer

    found: dict[str, object] = {}
    for loss_type in ("grpo", "bnpo", "dr_grpo"):
        for name, (low, high) in CLIPS.items():
            for beta in (0.0, 0.1):
                logp = b["logp"].clone().requires_grad_()
                trainer = SimpleNamespace(
                    _get_per_token_logps_and_entropies=lambda *_, logp=logp, **__: (logp, torch.zeros_like(logp), None),
                    aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token",
                    beta=beta, args=SimpleNamespace(use_bias_correction_kl=False, delta=None), loss_type=loss_type, epsilon_low=low,
                    epsilon_high=high, use_vllm=False, model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
                    max_completion_length=TOKENS, _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)},
                    accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
                )  # fmt: skip
                ids = torch.zeros(SEQUENCES, TOKENS, dtype=torch.long)
                inputs = {
                    "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": b["mask"],
                    "advantages": b["advantages"][:, 0], "old_per_token_logps": b["old"], "ref_per_token_logps": b["reference"],
                }  # fmt: skip
                loss = GRPOTrainer._compute_loss(trainer, None, inputs)
                loss.backward()
                found[f"{loss_type} {name} kl={beta}"] = {"loss": loss, "gradient": logp.grad}
    return found


def plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().double().tolist()
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def close(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True))
    return a == b


def main(library: str, check: bool) -> int:
    cases = [{"inputs": plain(batch(seed)), "outputs": plain({"verl": verl, "trl": trl}[library](batch(seed)))} for seed in range(SEEDS)]
    path = HERE / f"{library}.json"
    if not check:
        path.write_text(json.dumps({"library": library, "version": version(library), "torch": version("torch"), "cases": cases}) + "\n")
        return 0
    same = close(json.loads(path.read_text())["cases"], cases)
    print(f"{library} {version(library)}: {'computes what' if same else 'DIFFERS from what'} {path.name} holds")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--check" in sys.argv))
