"""Supervised training of a causal language model on packed trees, by Hugging Face's ``Trainer`` (kill it, run it again).

Used for the base language model, the experience model (Eq. 5) and the policy's warm start: same loop, other trees.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from dreamgym.core.errors import TrainingError
from dreamgym.lm.packing import Row, Tree, collate, pack
from dreamgym.lm.precision import has_bfloat16

LOWER = "what it trained is not kept, checkpoints before it are: train in a new folder with a lower learning_rate"


class FitConfig(BaseModel):
    """Optimisation of one supervised stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    learning_rate: float = 2e-3
    """Peak, after a short linear warm-up; cosine to zero afterwards."""
    epochs: float = 1.0
    row_length: int = 256
    """Tokens of one packed row."""
    rows: int = 24
    """Rows of one update."""
    weight_decay: float = 0.01
    seed: int = 0


class _Rows(Dataset[Row]):
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class _Progress(TrainerCallback):
    """Reports losses; one that is no number ends the training before its weights reach a checkpoint."""

    def __init__(self, report: Callable[[int, int, float], None]) -> None:
        self.report = report

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        if logs and "loss" in logs:
            for name in ("loss", "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise TrainingError(f"update {state.global_step} of {state.max_steps}: {name} is {logs[name]}; {LOWER}")
            self.report(state.global_step, state.max_steps, float(logs["loss"]))


def fit(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    config: FitConfig,
    folder: Path,
    report: Callable[[int, int, float], None] = lambda done, total, loss: None,
    checkpoint_every: int = 500,
) -> None:
    """Train ``model`` in place; ``folder`` keeps checkpoints, from which an interrupted call goes on.

    Raises ``TrainingError`` where a loss or a weight is no number; the checkpoints before it are kept.
    """
    rows, on_cpu = pack(trees, config.row_length), model.device.type == "cpu"
    attention = model.config._attn_implementation
    if on_cpu and has_bfloat16(model.device):
        model.set_attn_implementation("eager")  # with dense masks in 16 bits on a CPU 1.4 times as fast as sdpa, in 32 half as fast
    again: dict[str, Any] = {}
    if hasattr(model, "peft_config"):  # a model that is large enough for an adapter keeps only each layer's input
        again = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.rows,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=has_bfloat16(model.device),
        use_cpu=on_cpu,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=checkpoint_every,
        save_total_limit=1,
        logging_steps=20,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        **again,
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # else several GPUs would each take ``rows``
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=_Rows(rows),
        data_collator=collate,
        callbacks=[_Progress(report)],
    )
    trainer.remove_callback(_printer())
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    trainer.train(resume_from_checkpoint=last)
    model.set_attn_implementation(attention)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise TrainingError(f"the weights hold numbers that are none after {trainer.state.global_step} updates; {LOWER}")


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
