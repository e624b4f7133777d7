"""PPO's critic: the value of a state, read at the last token of the policy's prompt (a value head on a language model; Eq. 2)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from dreamgym.core.errors import TrainingError
from dreamgym.core.seeding import keyed_rng
from dreamgym.lm.local import device, in_own_memory
from dreamgym.lm.precision import short
from dreamgym.rl.config import RLConfig
from dreamgym.rl.losses import value_loss

START_ANEW = "this iteration is not kept, checkpoints before it are. Train in a new folder with a lower {}, or look at the last episodes"


HEAD = "score"
"""What transformers calls the output layer of a token classifier on a decoder."""


class Critic:
    """A backbone of its own, begun from the policy's warm start, with one output per token that begins at 0. Where the policy is an
    adapter (LoRA), so is the critic's backbone, on the same frozen base; the output layer is trained whole."""

    def __init__(self, folder: str | Path, config: RLConfig, pad: int) -> None:
        """A critic saved in ``folder``; of a causal language model (or an adapter) there, its backbone and a value of 0 everywhere."""
        self.config, self.pad = config, pad
        self.adapted = (Path(folder) / "adapter_config.json").exists()
        said = logging.get_verbosity()
        logging.set_verbosity_error()  # that a policy has no value head needs no report
        try:
            frozen = torch.bfloat16 if torch.cuda.is_available() else torch.float32
            model, saved = _adapter(str(folder), frozen) if self.adapted else _whole(str(folder))
            self.model = model.to(device()).eval()  # type: ignore[arg-type]
        finally:
            logging.set_verbosity(said)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.critic_learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
        if saved:
            self.optimizer.load_state_dict(torch.load(Path(folder) / "optimizer.pt", weights_only=True))
        else:
            with torch.no_grad():
                for p in getattr(self.model, HEAD).parameters():
                    p.zero_()

    def values(self, prompts: Sequence[tuple[int, ...]]) -> list[float]:
        """Of each prompt; equal prompts are read once."""
        unique = list(dict.fromkeys(prompts))
        with torch.no_grad():
            found = [float(v) for batch in self._batches(unique) for v in self._read(batch)]
        by_prompt = dict(zip((p for batch in self._batches(unique) for p in batch), found, strict=True))
        return [by_prompt[p] for p in prompts]

    def fit(
        self,
        prompts: Sequence[tuple[int, ...]],
        old: Sequence[float],
        targets: Sequence[float],
        updates: int,
        key: tuple[str | int, ...] = (),
        share: float = 1.0,
    ) -> dict[str, float]:
        """``critic_passes`` passes over the steps of an iteration, each at most ``updates`` updates; what came of it.

        Every step counts alike, and no update is of steps of one length only: each is of batches drawn by ``key``. ``share``: of the
        learning rate. ``explained``: the part of the targets' variance that the old values explain.
        """
        if not prompts:
            return {"value_loss": 0.0, "explained": 0.0}
        steps: dict[tuple[int, ...], list[tuple[float, float]]] = {}
        for p, v, t in zip(prompts, old, targets, strict=True):
            steps.setdefault(p, []).append((v, t))
        batches = self._batches(list(steps))
        per_update = max(1, -(-len(batches) // updates))
        together = len(prompts) / -(-len(batches) // per_update)  # steps of an update, on average
        losses = []
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.critic_learning_rate * share
        if self.adapted:
            recompute(self.model.get_base_model())
        for n in range(self.config.critic_passes):
            drawn = [batches[int(i)] for i in keyed_rng("critic", *key, n).permutation(len(batches))]
            for first in range(0, len(drawn), per_update):
                for batch in drawn[first : first + per_update]:
                    rows = torch.tensor([i for i, p in enumerate(batch) for _ in steps[p]])
                    was, target = torch.tensor([pair for p in batch for pair in steps[p]]).unbind(1)
                    lost = value_loss(self._read(batch).cpu()[rows], was, target, self.config.value_clip).sum()
                    (lost / together).backward()
                    losses.append(float(lost.detach()))
                norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm))
                if not math.isfinite(norm):
                    raise TrainingError(f"the critic's gradient is {norm}; {START_ANEW.format('critic_learning_rate')}")
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        aims, said = torch.tensor(list(targets)), torch.tensor(list(old))
        explained = 1 - float((aims - said).var() / aims.var()) if len(aims) > 1 and aims.var() > 0 else 0.0
        return {"value_loss": sum(losses) / (len(prompts) * self.config.critic_passes), "explained": explained}

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Values [len(prompts)], at each prompt's last token."""
        width, place = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[*p, *[self.pad] * (width - len(p))] for p in prompts], device=place)
        last = torch.tensor([len(p) - 1 for p in prompts], device=place)
        mask = (torch.arange(width, device=place) <= last[:, None]).long()
        with short(place):
            told = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[..., 0].float()
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


def _whole(folder: str) -> tuple[PreTrainedModel, bool]:
    """A model with a value head, and whether it was saved with one."""
    model = in_own_memory(AutoModelForTokenClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32))
    return model, type(model).__name__ in (model.config.architectures or ())


def _adapter(folder: str, frozen: torch.dtype) -> tuple[PreTrainedModel, bool]:
    """The same where ``folder`` has an adapter: of a critic as it is, of a policy with a value head beside it; its base in ``frozen``."""
    from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    name = str(config.base_model_name_or_path)
    base = in_own_memory(AutoModelForTokenClassification.from_pretrained(name, num_labels=1, dtype=frozen))
    getattr(base, HEAD).float()  # trained, so that what was saved of it comes back exactly
    if saved := config.task_type == "TOKEN_CLS":
        model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    else:
        config.task_type, config.modules_to_save, config.inference_mode = "TOKEN_CLS", [HEAD], False
        new = {f"base_model.model.{HEAD}.{name}": p for name, p in getattr(base, HEAD).named_parameters()}
        model = get_peft_model(base, config)
        set_peft_model_state_dict(model, load_peft_weights(folder) | new)
    for p in (p for p in model.parameters() if p.requires_grad):
        p.data = p.data.float()
    return model, saved  # type: ignore[return-value]  # it passes on all that is asked of the model inside


def recompute(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass: a large model's activations do not fit. What is in a layer stays as it is
    evaluated, without dropout."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
