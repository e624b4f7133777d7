"""PPO's critic: the value of a state, read at the last token of the policy's prompt (a value head on a language model; Eq. 2)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification
from transformers.utils import logging

from dreamgym.core.errors import TrainingError
from dreamgym.lm.local import device
from dreamgym.rl.config import RLConfig
from dreamgym.rl.losses import value_loss

START_ANEW = "this iteration is not kept, checkpoints before it are. Train in a new folder with a lower {}, or look at the last episodes"


class Critic:
    """A backbone of its own, begun from the policy's warm start, with one output per token that begins at 0."""

    def __init__(self, folder: str | Path, config: RLConfig, pad: int) -> None:
        """A critic saved in ``folder``; of a causal language model there, its backbone and a value of 0 everywhere."""
        self.config, self.pad = config, pad
        said = logging.get_verbosity()
        logging.set_verbosity_error()  # that a policy has no value head needs no report
        try:
            self.model = AutoModelForTokenClassification.from_pretrained(str(folder), num_labels=1, dtype=torch.float32)
            self.model = self.model.to(device()).eval()
        finally:
            logging.set_verbosity(said)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.critic_learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
        saved = Path(folder) / "optimizer.pt"
        if type(self.model).__name__ in (self.model.config.architectures or ()):
            self.optimizer.load_state_dict(torch.load(saved, weights_only=True))
        else:
            with torch.no_grad():
                for p in self.model.score.parameters():
                    p.zero_()

    def values(self, prompts: Sequence[tuple[int, ...]]) -> list[float]:
        """Of each prompt; equal prompts are read once."""
        unique = list(dict.fromkeys(prompts))
        with torch.no_grad():
            found = [float(v) for batch in self._batches(unique) for v in self._read(batch)]
        by_prompt = dict(zip((p for batch in self._batches(unique) for p in batch), found, strict=True))
        return [by_prompt[p] for p in prompts]

    def fit(self, prompts: Sequence[tuple[int, ...]], old: Sequence[float], targets: Sequence[float], updates: int) -> dict[str, float]:
        """``critic_passes`` passes over the steps of an iteration, each at most ``updates`` updates; what came of it.

        ``explained``: the part of the targets' variance that the old values explain.
        """
        if not prompts:
            return {"value_loss": 0.0, "explained": 0.0}
        steps: dict[tuple[int, ...], list[tuple[float, float]]] = {}
        for p, v, t in zip(prompts, old, targets, strict=True):
            steps.setdefault(p, []).append((v, t))
        batches = self._batches(list(steps))
        per_update = max(1, -(-len(batches) // updates))
        losses = []
        for _ in range(self.config.critic_passes):
            for first in range(0, len(batches), per_update):
                part = batches[first : first + per_update]
                n = sum(len(steps[p]) for batch in part for p in batch)
                lost = 0.0
                for batch in part:
                    rows = torch.tensor([i for i, p in enumerate(batch) for _ in steps[p]])
                    was, target = torch.tensor([pair for p in batch for pair in steps[p]]).unbind(1)
                    loss = value_loss(self._read(batch).cpu()[rows], was, target, self.config.value_clip).sum() / n
                    loss.backward()
                    lost += float(loss.detach())
                norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
                if not math.isfinite(norm):
                    raise TrainingError(f"the critic's gradient is {norm}; {START_ANEW.format('critic_learning_rate')}")
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(lost)
        aims, said = torch.tensor(list(targets)), torch.tensor(list(old))
        explained = 1 - float((aims - said).var() / aims.var()) if len(aims) > 1 and aims.var() > 0 else 0.0
        return {"value_loss": sum(losses) / max(len(losses), 1), "explained": explained}

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Values [len(prompts)], at each prompt's last token."""
        width, place = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[*p, *[self.pad] * (width - len(p))] for p in prompts], device=place)
        last = torch.tensor([len(p) - 1 for p in prompts], device=place)
        mask = (torch.arange(width, device=place) <= last[:, None]).long()
        with torch.autocast(place.type, dtype=torch.bfloat16):
            told = self.model(input_ids=ids, attention_mask=mask).logits[..., 0].float()
        return told[torch.arange(len(prompts), device=place), last]

    def _batches(self, prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """By length, each of about as many tokens as a batch of the policy's update."""
        budget, batches = self.config.row_length * self.config.rows, list[list[tuple[int, ...]]]()
        for p in sorted(prompts, key=len):
            if not batches or (len(batches[-1]) + 1) * len(p) > budget:
                batches.append([])
            batches[-1].append(p)
        return batches

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(str(folder))
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
