"""A local causal language model: batched generation with keyed draws, and log-probabilities of what was sampled.

Draws belong to (seed, task, member, turn) keys that the caller names, so a reply does not depend on its place in a batch. Prompts are
read in bfloat16 where the hardware has it (``precision``), on an accelerator replies too; on a CPU a reply's tokens are in 32 bits. The
frozen weights of a LoRA policy are kept in bfloat16 on an accelerator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dreamgym.core.errors import ConfigError, DataError
from dreamgym.lm.cache import Memory, join, preload, roomy_cache
from dreamgym.lm.lora import Lora
from dreamgym.lm.precision import short

ROWS = 16
"""Prompts read in one pass: more do not fit a core's caches. Their rows do not depend on each other."""
SHORT = 64
"""Where prompts go on from what is known, as many tokens as ``ROWS`` of this length are read in one pass."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampled token ids (the end token included where it was sampled) and their log-probabilities under the sampler."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    """Whether the end token was reached within the budget."""


class LocalLM:
    """Model and tokenizer of one folder (or hub name), in evaluation mode."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos)
        self.tokens_in = 0
        self.tokens_out = 0

    @classmethod
    def load(cls, path: str | Path, lora: Lora | None = None) -> "LocalLM":
        """From a saved folder (a model, or an adapter that names its base) or a hub name; ``lora``: with a new adapter on top."""
        try:
            if lora:
                return cls(_adapted(str(path), lora), AutoTokenizer.from_pretrained(str(path)))
            if (Path(path) / "adapter_config.json").exists():
                return cls(_adapted(str(path)), AutoTokenizer.from_pretrained(str(path)))
            return cls(_placed(str(path), torch.float32), AutoTokenizer.from_pretrained(str(path)))
        except (OSError, ValueError) as e:
            raise DataError(f"{path}: holds no causal language model that transformers can load ({e})") from e

    @property
    def causal(self) -> PreTrainedModel:
        """The model of Hugging Face's class: with an adapter, the one inside it."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained instead of all weights."""
        return hasattr(self.model, "peft_config")

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The weights that training changes."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def parameters(self) -> int:
        return int(sum(p.numel() for p in self.model.parameters()))

    def save(self, path: Path) -> None:
        self.model.save_pretrained(str(path))
        self.tokenizer.save_pretrained(str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of data: no special token can be written as text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return [list(i) for i in self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without the end token."""
        return str(self.tokenizer.decode([i for i in ids if i != self.eos], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        budget: int,
        temperature: float = 0.0,
        draws: Sequence[np.random.Generator] | None = None,
        memory: Memory | None = None,
        known: Sequence[int] = (),
    ) -> list[Generation]:
        """Continue each prompt until the end token or ``budget`` tokens.

        Greedy at temperature 0; otherwise row i samples with ``draws[i]`` alone. Log-probabilities are those of the
        distribution sampled from (after temperature); greedy ones those at temperature 1. Prompt i goes on from its first ``known[i]``
        tokens, a prompt and its reply of an earlier call: what ``memory`` has of them is not read again. Raises ``ConfigError`` where a
        prompt and a reply may be longer than the model was made for.
        """
        if not prompts:
            return []
        if temperature > 0 and (draws is None or len(draws) != len(prompts)):
            raise ValueError(f"sampling needs one generator per prompt: {len(prompts)} prompts")
        longest, places = max(map(len, prompts)), getattr(self.model.config, "max_position_embeddings", None)
        if places and longest + budget > places:
            raise ConfigError(
                f"a prompt of {longest} tokens and a reply of up to {budget} do not fit the {places} that this model was made for"
                " (max_position_embeddings); show it less (policy.context: steps, a shorter history), end episodes earlier (rl.horizon), or"
                " take a model with more"
            )
        unique = {tuple(p): None for p in prompts}
        row_of = {p: i for i, p in enumerate(unique)}
        begun = dict(zip(map(tuple, prompts), known, strict=False)) if memory else {}
        held = [memory.take(p[: begun.get(p, 0)]) if memory else None for p in unique]
        shapes = max((h for h in held if h), key=lambda h: h[0][0].shape[1], default=None)
        n, past, place = len(prompts), shapes[0][0].shape[1] if shapes else 0, self.model.device
        new = [p[h[0][0].shape[1] if h else 0 :] for p, h in zip(unique, held, strict=True)]
        width = max(map(len, new))
        ids = torch.full((len(unique), width), self.pad)
        mask = torch.zeros((len(unique), past + width), dtype=torch.long)  # of a row: padding, what is known, padding, what is new
        for i, (p, x) in enumerate(zip(unique, new, strict=True)):
            ids[i, width - len(x) :] = torch.tensor(x)
            mask[i, past + width - len(x) :] = 1
            mask[i, past - (len(p) - len(x)) : past] = 1
        self.tokens_in += sum(map(len, new))
        ids, mask = ids.to(place), mask.to(place)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        read, last = [], []
        parts = min(len(unique), -(-len(unique) * width // (ROWS * SHORT))) if shapes else -(-len(unique) // ROWS)
        for part in torch.arange(len(unique)).tensor_split(parts):  # equal parts
            read.append(roomy_cache(self.model.config))
            if shapes:
                preload(read[-1], [held[i] for i in part], past, width, shapes)
            with short(place):
                told = self.model(
                    input_ids=ids[part], attention_mask=mask[part], position_ids=positions[part], past_key_values=read[-1], logits_to_keep=1
                )
            last.append(told.logits[:, -1].float())
        rows = torch.tensor([row_of[tuple(p)] for p in prompts], device=place)  # equal prompts (members of a group, mostly) are read once
        cache, logits, mask = join(read, rows, self.model.dtype), torch.cat(last)[rows], mask[rows]
        read.clear()  # else the prompts' keys and values are held twice while the replies are written
        out: list[list[int]] = [[] for _ in range(n)]
        logprobs: list[list[float]] = [[] for _ in range(n)]
        live = list(range(n))
        position = mask.sum(1)
        for _ in range(budget):
            chosen, lp = self._choose(logits, temperature, [draws[i] for i in live] if draws else None)
            keep: list[int] = []
            for row, i in enumerate(live):
                out[i].append(int(chosen[row]))
                logprobs[i].append(float(lp[row]))
                if out[i][-1] != self.eos and len(out[i]) < budget:
                    keep.append(row)
                elif memory is not None:
                    memory.keep((*prompts[i], *out[i]), cache, row, mask[row])
            self.tokens_out += len(live)
            if not keep:
                break
            if len(keep) < len(live):  # the last rows take the places of those that ended
                staying = set(keep)
                last_first = iter(reversed(keep))
                keep = [r if r in staying else next(last_first) for r in range(len(keep))]
                live = [live[r] for r in keep]
                index = torch.tensor(keep, device=place)
                cache.batch_select_indices(index)
                mask, position, chosen = mask[index], position[index], chosen[index]
            mask = torch.cat([mask, mask.new_ones((len(live), 1))], dim=1)
            with torch.autocast(place.type, dtype=torch.bfloat16, enabled=place.type != "cpu"):
                told = self.model(input_ids=chosen[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache)
            logits = told.logits[:, -1].float()
            position = position + 1
        if memory is not None:
            memory.trim(n)
        return [Generation(tuple(o), tuple(lp), bool(o) and o[-1] == self.eos) for o, lp in zip(out, logprobs, strict=True)]

    def _choose(
        self, logits: torch.Tensor, temperature: float, draws: Sequence[np.random.Generator] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if temperature == 0 or draws is None:
            chosen = logits.argmax(-1)
            return chosen, torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        logp = torch.log_softmax(logits / temperature, -1)
        cumulative = logp.double().exp().cumsum(-1)
        u = torch.tensor([d.random() for d in draws], dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, u).clamp(max=logits.shape[-1] - 1)[:, 0]
        return chosen, logp.gather(1, chosen[:, None])[:, 0]


def device() -> str:
    """Where models live."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _placed(path: str, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return in_own_memory(model.to(device()))  # type: ignore[arg-type]


def in_own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights where PyTorch puts its own. Those of a file lie in it at any offset, and in 32 bits a product's last bit depends
    on that: a run that goes on from its checkpoint would not be the run that was not killed."""
    for p in model.parameters():
        p.data = p.data.clone()
    return model


def _adapted(path: str, lora: Lora | None = None) -> PreTrainedModel:
    """The adapter saved in ``path`` on the base that it names, or a new one on the model in ``path``."""
    from peft import PeftConfig, PeftModel, get_peft_model

    base = path if lora else str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    base = str(Path(base).resolve()) if Path(base).exists() else base  # an adapter keeps this name, and is read from anywhere
    model = _placed(base, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    found = get_peft_model(model, lora.peft()) if lora else PeftModel.from_pretrained(model, path, is_trainable=True)
    return found  # type: ignore[return-value]  # it passes on all that is asked of the model inside
