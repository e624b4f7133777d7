"""TRL's own environment loop on the rollout benchmark's slow environment: 16 episodes of 3 turns, 50 ms a step, a policy of no time.

``GRPOTrainer`` with ``environment_factory``; what its policy would say is put in place of its generation, everything else is TRL's.
"""

import os
import tempfile
import time
from pathlib import Path

TURNS, EPISODES, STEP_S = 3, 16, 0.05


class Slow:
    """Three turns of 50 ms, as a tool."""

    def reset(self, **row: object) -> str:
        self.turns = 0
        return "lamp: off"

    def wait(self) -> str:
        """Wait for a turn."""
        time.sleep(STEP_S)
        self.turns += 1
        return "lamp: off"

    def get_reward(self) -> float:
        return 0.0


def trl_environment_s() -> float:
    """Seconds of one batch of rollouts by TRL."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    import trl
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from dreamgym.lm.tiny import train_tokenizer

    call, last = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call><|im_end|>', "done<|im_end|>"
    tokenizer = train_tokenizer([f"{call} {last} user assistant"] * 20, 400)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    size |= {"head_dim": 16, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 4096}
    model = Qwen3ForCausalLM(Qwen3Config(**size))
    row = {"prompt": [{"role": "user", "content": "wait"}]}
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=EPISODES,
            num_generations=4,
            max_completion_length=2048,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = GRPOTrainer(
            model, args=args, train_dataset=datasets.Dataset.from_list([row] * 4), processing_class=tokenizer, environment_factory=Slow
        )
        said = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*[call] * TURNS, last)]
        turn = iter(said)
        trainer._generate_single_turn = lambda prompts, *_, **__: ((ids := next(turn)) and [list(ids) for _ in prompts], None)
        start = time.perf_counter()
        trainer._generate_and_score_completions([dict(row) for _ in range(EPISODES)])
        taken = time.perf_counter() - start
        assert [e.turns for e in trainer.environments] == [TURNS] * EPISODES, "TRL's loop has changed: not all turns were taken"
    return taken
