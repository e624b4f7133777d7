"""A chat model in this process that answers like a server: the same experience model, without HTTP.

    model = EndpointExperienceModel(LocalChat.load("runs/mine/experience"), ExperienceConfig(k=4), EndpointReply(), buffer.snapshot())

Any Hugging Face causal LM with a chat template, with or without a LoRA adapter, on the accelerator where there is one. Calls of
one batch are gathered when all of them wait (``Lockstep``). Draws above temperature 0 are keyed by the ask's seed: Gumbel noise
on the logits of each row, so a reply does not depend on who shares its batch.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from dreamgym.core.errors import DataError
from dreamgym.core.lockstep import Lockstep
from dreamgym.core.seeding import keyed_rng
from dreamgym.endpoint.config import Answer, Ask
from dreamgym.lm.local import device

T = TypeVar("T")


class LocalChat:
    """Satisfies ``Chat``: what ``EndpointExperienceModel`` asks of a server."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 16) -> None:
        if not tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template; choose an instruction-tuned model")
        self.model, self.tokenizer, self.batch = model.eval(), tokenizer, batch
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="local chat").start()
        self._lockstep = Lockstep({"chat": self._answers})

    @classmethod
    def load(cls, path: str | Path, batch: int = 16) -> "LocalChat":
        """From a folder (a model, or a LoRA adapter that names its base) or a hub name."""
        try:
            dtype = torch.bfloat16 if device() == "cuda" else torch.float32
            model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, device_map=device())
            return cls(model, AutoTokenizer.from_pretrained(str(path), padding_side="left"), batch)
        except (OSError, ValueError) as e:
            raise DataError(f"{path}: holds no causal language model that transformers can load ({e})") from e

    def together(self, work: Sequence[Coroutine[object, object, T]]) -> list[T]:
        """Run coroutines that await ``reply`` side by side; results in their order."""
        return asyncio.run_coroutine_threadsafe(self._lockstep.run(work), self._loop).result()

    async def reply(self, ask: Ask) -> Answer:
        answer = await self._lockstep.call("chat", (ask.seed,), ask)
        assert isinstance(answer, Answer)
        return answer

    def _answers(self, asks: Sequence[Ask]) -> list[Answer]:
        return [a for start in range(0, len(asks), self.batch) for a in self._batch(asks[start : start + self.batch])]

    @torch.inference_mode()
    def _batch(self, asks: Sequence[Ask]) -> list[Answer]:
        texts = [chat_text(self.tokenizer, [{"role": r, "content": c} for r, c in a.messages]) for a in asks]
        prompts = self.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        prompts = prompts.to(self.model.device)
        width = prompts["input_ids"].shape[1]
        out = self.model.generate(
            **prompts,
            max_new_tokens=max(a.budget for a in asks),
            do_sample=False,
            repetition_penalty=1.0,  # a reply repeats the prompt's lines, and its training knew no penalty
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id,
            logits_processor=[KeyedDraws([a.temperature for a in asks], [a.seed for a in asks])],
        )
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends, self.tokenizer.eos_token_id}
        answers = []
        for ask, row in zip(asks, out[:, width:].tolist(), strict=True):
            stop = next((i for i, t in enumerate(row) if t in ends), len(row))
            text = self.tokenizer.decode(row[:stop], skip_special_tokens=True)
            n = min(stop + 1, len(row))
            self.counts["tokens_out"] += n
            answers.append(Answer(text=text, error="" if stop < min(len(row), ask.budget) else "truncated", tokens_out=n))
        self.counts["calls"] += len(asks)
        self.counts["attempts"] += len(asks)
        self.counts["tokens_in"] += int(prompts["attention_mask"].sum())
        return answers


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], reply: bool = True) -> str:
    """A conversation as the model's template writes it; with ``reply`` up to where its answer begins."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply))


class KeyedDraws(LogitsProcessor):
    """Sampling by the largest of logits / T + Gumbel noise, the noise of row i drawn from ``seeds[i]`` alone; T = 0 is greedy."""

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int]) -> None:
        self.temperatures = temperatures
        self.draws = [keyed_rng("chat", s) for s in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float().clone()
        for row, (t, draw) in enumerate(zip(self.temperatures, self.draws, strict=True)):
            if t > 0:
                scores[row] = scores[row] / t + torch.from_numpy(draw.gumbel(size=scores.shape[1])).to(scores)
        return scores
