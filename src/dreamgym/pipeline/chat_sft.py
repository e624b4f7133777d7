"""Fine-tuning a pretrained chat LLM as the experience model (Eq. 5), by TRL's ``SFTTrainer``.

    accelerate launch -m dreamgym.pipeline.chat_sft --run runs/mine       # several GPUs; one process: dreamgym train-experience

Each annotated step is a conversation: the prompt of ``experience/chat.py`` with retrieved experiences (never of the own episode; for
half of the steps not of the own task), and as completion the JSON reply, reasoning first. The loss is on the completion only. Shown
experiences are dropped at random, so that the model does not lean on them. LoRA or full; killed, it goes on at its last checkpoint.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dreamgym.core.errors import ConfigError, DataError, DreamgymError, MissingExtraError
from dreamgym.core.seeding import keyed_rng
from dreamgym.core.types import Episode, Task
from dreamgym.experience.chat import Form, reply_text, step_messages
from dreamgym.experience.inprocess import chat_text
from dreamgym.experience.prompt import ExperienceConfig, PromptBuilder
from dreamgym.experience.sft import requests_of
from dreamgym.lm.fit import _Progress
from dreamgym.pipeline.config import Pretrained
from dreamgym.pipeline.learn import Report, quiet
from dreamgym.replay.contract import Retrieval

try:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]
except ImportError as e:
    raise MissingExtraError("trl (with peft and datasets)", "sft") from e

Conversation = list[dict[str, str]]


def conversations(
    episodes: Sequence[Episode],
    tasks: dict[str, Task],
    config: ExperienceConfig,
    form: Form,
    retrieval: Retrieval,
    dropout: float,
    seed: int,
) -> Iterator[dict[str, Conversation]]:
    """Prompt and completion of every annotated step. ``dropout``: chance that a shown experience is left out."""
    prompts = PromptBuilder(config, retrieval)
    for e in episodes:
        pairs = requests_of(e, tasks[e.task.id])
        draws = [keyed_rng(seed, "chat-sft", *r.key) for r, _ in pairs]
        own_task = [bool(d.random() < 0.5) for d in draws]
        shown = prompts.similar([r for r, _ in pairs], own_task, config.k)
        for (request, t), similar, draw in zip(pairs, shown, draws, strict=True):
            kept = [s for s in similar if draw.random() >= dropout]
            prompt = [{"role": role, "content": text} for role, text in step_messages(request, kept, config, form)]
            yield {"prompt": prompt, "completion": [{"role": "assistant", "content": reply_text(t, form, config.reasoning)}]}


def train_chat(
    episodes: Sequence[Episode],
    tasks: dict[str, Task],
    prompt: ExperienceConfig,
    config: Pretrained,
    folder: Path,
    retrieval: Retrieval,
    seed: int,
    report: Report = quiet,
) -> int:
    """Train into ``folder`` (an adapter with LoRA, else the whole model); returns the number of conversations.

    Raises ``DataError`` where a conversation is longer than ``max_length``: TRL would cut its reply off.
    """
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = list(conversations(episodes, tasks, prompt, config.reply.form, retrieval, config.retrieval_dropout, seed))
    _check_lengths(found, tokenizer, config.max_length)
    gpu = torch.cuda.is_available()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.bfloat16 if gpu else torch.float32),
        args=SFTConfig(
            output_dir=str(folder / "checkpoints"),
            learning_rate=config.learning_rate,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch,
            gradient_accumulation_steps=config.accumulation,
            max_length=config.max_length,
            packing=config.packing,
            completion_only_loss=True,
            bf16=gpu,
            use_cpu=not gpu,
            activation_checkpointing=gpu,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            save_strategy="steps",
            save_steps=config.checkpoint_every,
            save_total_limit=1,
            logging_steps=5,
            seed=seed,
            data_seed=seed,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(found),
        processing_class=tokenizer,
        peft_config=config.lora.peft() if config.lora else None,
        callbacks=[_Progress(report)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoints = folder / "checkpoints"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(str(folder))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        shutil.rmtree(checkpoints, ignore_errors=True)
    return len(found)


def _check_lengths(found: Sequence[dict[str, Conversation]], tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    texts = [chat_text(tokenizer, [*c["prompt"], *c["completion"]], reply=False) for c in found]
    lengths = [len(i) for i in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    long = sum(n > limit for n in lengths)
    if long:
        raise DataError(
            f"experience.pretrained.max_length: {long} of {len(found)} conversations are longer than {limit} tokens, the longest has"
            f" {max(lengths)}; raise it, or show less (experience.prompt.k, history)"
        )


def main() -> None:
    """Entry for ``accelerate launch``: this stage only, on a run whose logs are annotated; the command line finds it done afterwards."""
    from accelerate import PartialState

    from dreamgym.pipeline.config_file import load_config
    from dreamgym.pipeline.grounding import run_buffer
    from dreamgym.pipeline.run import Run, console, drop_torn_checkpoints
    from dreamgym.pipeline.stages import train_experience_model

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True)
    folder = parser.parse_args().run
    run, state = Run(folder, load_config(folder / "config.yaml")), PartialState()
    console.quiet = not state.is_main_process
    if not run.config.experience.pretrained:
        raise ConfigError(f"{folder}: has no experience.pretrained, so there is no chat LLM to train; use dreamgym train-experience")
    if not run.done("annotate"):
        raise ConfigError(f"{folder}: stage annotate has not finished there; run: dreamgym annotate --run {folder}")
    if run.done("train-experience"):
        console.print("train-experience: done before")
        return
    with state.main_process_first():  # one process makes the buffer and tidies up, the others find it so
        run_buffer(run).close()
        drop_torn_checkpoints(run.path("experience/checkpoints"))
    if state.is_main_process:
        run.stage("train-experience", lambda: train_experience_model(run))
    else:
        train_experience_model(run)


if __name__ == "__main__":
    from dreamgym.pipeline.ranks import leave

    try:
        main()
    except DreamgymError as e:
        sys.exit(f"error: {e}")
    finally:
        leave()
