"""Losses and their gradients equal what verl and TRL compute for the same tokens (tests/golden; make oracles)."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.rl.losses import average, clipped_surrogate, divergence, entropy, importance, value_loss  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
VERL, TRL = (json.loads((GOLDEN / f"{name}.json").read_text())["cases"] for name in ("verl", "trl"))
HOW = {
    "token-mean": "token", "seq-mean-token-mean": "sequence", "seq-mean-token-sum-norm": "fixed",
    "grpo": "sequence", "bnpo": "token", "dr_grpo": "fixed",
}  # fmt: skip


class Tokens:
    """The inputs of a golden case as ours are: policy tokens only, [N]."""

    def __init__(self, case):
        given = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["inputs"].items()}
        self.mask = given["mask"].bool()
        self.sequences, self.width = self.mask.shape
        for name in ("old", "logp", "reference", "sampled", "advantages", "values", "predicted", "rewards", "logits"):
            setattr(self, name, given[name][self.mask])
        self.lengths = self.mask.sum(1, keepdim=True).expand_as(self.mask)[self.mask].double()

    def average(self, per_token, how):
        total = len(per_token) if how == "token" else self.sequences
        return average(per_token, self.lengths, total, how, self.width)

    def of(self, matrix):
        """The policy tokens of a golden [B, T]."""
        return torch.tensor(matrix, dtype=torch.float64)[self.mask]


@pytest.mark.parametrize("case", VERL)
def test_verl_computes_the_same_losses(case):
    t, wanted = Tokens(case), case["outputs"]
    clipped = 0
    for high in (None, 0.28):
        for how in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
            for dual in (None, 3.0):
                name = f"{'dapo' if high else 'ppo'} {how} {'dual' if dual else 'plain'}"
                logp = t.logp.clone().requires_grad_()
                per_token, cut = clipped_surrogate(logp, t.old, t.advantages, 0.2, high, dual)
                loss = t.average(per_token, HOW[how])
                loss.backward()
                clipped += int(cut.sum())
                assert loss.item() == pytest.approx(wanted[name]["loss"]), name
                torch.testing.assert_close(logp.grad, t.of(wanted[name]["gradient"]), msg=name)
    assert clipped, "no token of this case is clipped: it shows nothing"
    torch.testing.assert_close(importance(t.old, t.sampled, 1.3), t.of(wanted["importance"]))
    for name in ("k2", "k3"):
        torch.testing.assert_close(divergence(t.logp, t.reference, name), t.of(wanted[name]))
    assert value_loss(t.predicted, t.values, t.rewards, 0.2).mean().item() == pytest.approx(wanted["value_loss"])
    assert entropy(t.logits).mean().item() == pytest.approx(wanted["entropy"])


@pytest.mark.parametrize("case", TRL)
def test_trl_computes_the_same_losses(case):
    t = Tokens(case)
    for name, wanted in case["outputs"].items():
        loss_type, clips, kl = name.split()
        logp = t.logp.clone().requires_grad_()
        per_token, _ = clipped_surrogate(logp, t.old, t.advantages, 0.2, 0.28 if clips == "dapo" else None)
        loss = t.average(per_token + float(kl.removeprefix("kl=")) * divergence(logp, t.reference), HOW[loss_type])
        loss.backward()
        assert loss.item() == pytest.approx(wanted["loss"]), name
        torch.testing.assert_close(logp.grad, t.of(wanted["gradient"]), msg=name)


def test_a_gradient_stops_outside_the_clip():
    logp = torch.tensor([0.0, 0.5, -0.5, 0.5], requires_grad=True)
    per_token, clipped = clipped_surrogate(logp, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2)
    assert clipped.tolist() == [False, True, True, False]
    per_token.sum().backward()
    assert [bool(g) for g in logp.grad] == [True, False, False, True]
