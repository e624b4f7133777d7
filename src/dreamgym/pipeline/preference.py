"""DPO (arXiv 2305.18290) by TRL's ``DPOTrainer``, a baseline from logs alone: in a demonstrated state, the demonstrated action before
one that the logs saw fail or do nothing there.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamgym.core.errors import DataError, MissingExtraError
from dreamgym.core.state import State
from dreamgym.core.types import Episode
from dreamgym.lm.local import LocalLM
from dreamgym.lm.precision import has_bfloat16
from dreamgym.rl.context import Turn
from dreamgym.rl.policy import STATE_CONTEXT

Pair = tuple[str, State, str, str]
"""Instruction, state, the demonstrated action, the other one."""


def preferences(demonstrations: Sequence[Episode], logs: Sequence[Episode]) -> list[Pair]:
    """Each demonstrated step against all logged ones from an equal state of its task that lost or changed nothing. Raises ``DataError``."""
    bad: dict[tuple[str, State], dict[str, None]] = {}
    for e in logs:
        for t in e.steps:
            if t.outcome == "lost" or (t.outcome == "go" and not (t.added or t.removed)):
                bad.setdefault((e.task.id, t.state), {})[t.action] = None
    pairs = [
        (e.task.instruction, t.state, t.action, other)
        for e in demonstrations
        for t in e.transitions
        for other in bad.get((e.task.id, t.state), ())
        if other != t.action
    ]
    if not pairs:
        raise DataError("dpo: the logs hold no failed step from a demonstrated state; there is nothing to prefer. Record counterfactuals")
    return pairs


def prefer(
    start: str | Path, pairs: Sequence[Pair], folder: Path, seed: int, epochs: float, learning_rate: float, beta: float = 0.1
) -> LocalLM:
    """``start`` (which is also the reference) trained on ``pairs``, saved in ``folder``. Needs the extra [sft]."""
    try:
        import datasets
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer
    except ImportError as e:
        raise MissingExtraError("trl", "sft") from e
    lm, reference = LocalLM.load(start), LocalLM.load(start)
    prompts = STATE_CONTEXT.prompts(lm, [Turn(instruction, state, ()) for instruction, state, _, _ in pairs])
    chosen = [[*lm.encode(STATE_CONTEXT.reply(action)), lm.eos] for _, _, action, _ in pairs]
    rejected = [[*lm.encode(STATE_CONTEXT.reply(other)), lm.eos] for _, _, _, other in pairs]

    class TokenDPO(DPOTrainer):  # type: ignore[misc]
        """What is trained on is what the policy sees: token ids, not text that is rendered anew."""

        def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
            return dataset

    logging.getLogger("trl").setLevel(logging.ERROR)
    trainer = TokenDPO(
        model=lm.model,
        ref_model=reference.model,
        args=DPOConfig(
            output_dir=str(folder / "checkpoints"),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            beta=beta,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            max_length=None,
            bf16=has_bfloat16(lm.model.device),
            use_cpu=True,
            gradient_checkpointing=False,
            seed=seed,
            data_seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected}),
        processing_class=lm.tokenizer,
    )
    trainer.train()
    lm.save(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return LocalLM.load(folder)
