"""Fine-tuning a chat LLM through TRL, on tiny random models of real architectures, and playing a dream with the result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("trl", reason="needs the extra [sft]")

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_core import an_episode
from test_endpoint import REQUEST
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dreamgym.core.errors import DataError
from dreamgym.core.types import Episode, Transition
from dreamgym.endpoint.config import Ask
from dreamgym.experience.chat import EndpointReply, parse_step, reply_text
from dreamgym.experience.endpoint import EndpointExperienceModel
from dreamgym.experience.inprocess import LocalChat
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.experience.teach import explained
from dreamgym.lm.tiny import train_tokenizer
from dreamgym.pipeline.chat_sft import conversations, train_chat
from dreamgym.pipeline.config import Pretrained
from dreamgym.replay.buffer import ReplayBuffer

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


PLANS = ["it opens", "it is eaten", "so it looks"]


def taught(number: int) -> Episode:
    e = an_episode(name=f"e{number}")
    return explained(e.model_copy(update={"task": e.task.model_copy(update={"id": f"t/{number}"})}), PLANS)


EPISODES = [taught(i) for i in range(6)]
TASKS = {e.task.id: e.task for e in EPISODES}


def tiny(folder: Path, kind: str) -> Path:
    """A tiny random chat model of a real architecture."""
    config = ExperienceConfig(k=1)
    text = [json.dumps(list(conversations(EPISODES, TASKS, config, "change", ReplayBuffer().snapshot(), 0.0, 0)))]
    tokenizer = train_tokenizer(text, 700)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    shape = {**size, **ids, "max_position_embeddings": 4096}
    model = LlamaForCausalLM(LlamaConfig(**shape)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**shape))
    model.save_pretrained(folder)
    return folder


def settings(model: Path, **more) -> Pretrained:
    usual = {"epochs": 1.0, "batch": 2, "accumulation": 1, "packing": False, "checkpoint_every": 3}
    return Pretrained(model=str(model), **{**usual, **more})


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_lora_through_trl_gives_an_adapter_that_plays_in_process(tmp_path, kind):
    model = tiny(tmp_path / "base", kind)
    losses = []
    report = lambda d, t, loss: losses.append(loss)  # noqa: E731
    n = train_chat(EPISODES, TASKS, ExperienceConfig(k=1), settings(model), tmp_path / "out", seen(), 0, report)
    assert n == sum(len(e.steps) for e in EPISODES)
    assert losses
    assert (tmp_path / "out" / "adapter_config.json").exists()
    player = in_process(tmp_path / "out", ExperienceConfig(k=1), EndpointReply(reasoning_tokens=8, outcome_tokens=8, samples=2))
    answer = player.predict([REQUEST])[0]
    assert answer.reward is None, "an untrained model's babble is invalid, not a reward"
    assert player.costs()["experience_calls_unusable"] == 2


def test_all_weights_learn_the_replies_by_heart(tmp_path):
    """Enough epochs on equal episodes: the fine-tuned model answers like the log, through the whole chat path."""
    model = tiny(tmp_path / "base", "llama")
    config = settings(model, lora=None, epochs=36.0, learning_rate=3e-3, batch=3, checkpoint_every=500)
    train_chat(EPISODES[:3], TASKS, ExperienceConfig(k=0), config, tmp_path / "out", seen(), 0)
    player = in_process(tmp_path / "out", ExperienceConfig(k=0), EndpointReply(reasoning_tokens=60, outcome_tokens=60, samples=1))
    answer = player.predict([REQUEST])[0]
    assert answer.reply is not None, answer.text
    assert (answer.reply.change, answer.reply.reasoning) == (EPISODES[0].transitions[0].change, "it opens")


def seen():
    """What retrieval finds in training: all episodes."""
    buffer = ReplayBuffer()
    buffer.add(EPISODES)
    return buffer.snapshot()


def in_process(folder: Path, config: ExperienceConfig, reply: EndpointReply) -> EndpointExperienceModel:
    return EndpointExperienceModel(LocalChat.load(folder, batch=4), config, reply, ReplayBuffer().snapshot())


def test_draws_belong_to_their_seed_and_not_to_their_batch(tmp_path):
    chat = LocalChat.load(tiny(tmp_path / "base", "qwen2"), batch=8)
    asks = [Ask(messages=(("user", "look" * (1 + i % 3)),), budget=6, temperature=1.0, seed=i) for i in range(6)]
    together = chat.together([chat.reply(a) for a in asks])
    alone = [chat.together([chat.reply(a)])[0] for a in asks]
    assert [a.text for a in together] == [a.text for a in alone]
    assert len({a.text for a in together}) > 1
    greedy = asks[0].model_copy(update={"temperature": 0.0})
    other = greedy.model_copy(update={"seed": 99})
    assert chat.together([chat.reply(greedy)]) == chat.together([chat.reply(other)])


@given(st.sampled_from(["change", "state"]), st.booleans(), st.integers(0, 1))
def test_what_is_taught_is_what_is_parsed(form, reasoning, n):
    t: Transition = EPISODES[0].transitions[n].model_copy(update={"reasoning": 'because "so"'})
    reply = parse_step(reply_text(t, form, reasoning), t.state, form, reasoning=reasoning)
    assert (reply.change, reply.outcome, reply.reasoning) == (t.change, t.outcome, 'because "so"' if reasoning else "")


def test_the_own_episode_is_never_shown_and_experiences_are_dropped():
    buffer = ReplayBuffer()
    buffer.add(EPISODES[:1])
    shown = list(conversations(EPISODES[:1], TASKS, ExperienceConfig(k=2), "change", buffer.snapshot(), 0.0, 0))
    assert all("most similar last\n(none)" in c["prompt"][1]["content"] for c in shown), "only its own episode is there"
    buffer.add(EPISODES[1:])
    full = list(conversations(EPISODES[:1], TASKS, ExperienceConfig(k=2), "change", buffer.snapshot(), 0.0, 0))
    assert all('"action"' in c["prompt"][1]["content"] for c in full)
    none = list(conversations(EPISODES[:1], TASKS, ExperienceConfig(k=2), "change", buffer.snapshot(), 1.0, 0))
    assert all("most similar last\n(none)" in c["prompt"][1]["content"] for c in none)


def test_a_conversation_that_would_be_cut_is_refused(tmp_path):
    model = tiny(tmp_path / "base", "llama")
    with pytest.raises(DataError, match=r"max_length: 18 of 18 .* raise it"):
        train_chat(EPISODES, TASKS, ExperienceConfig(), settings(model, max_length=128), tmp_path / "out", seen(), 0)


def tuned(model: Path, out: Path) -> list[int]:
    """The steps that a fine-tuning reports, from where it was."""
    steps: list[int] = []
    config = settings(model, epochs=4.0)
    train_chat(EPISODES, TASKS, ExperienceConfig(k=1), config, out, seen(), 0, lambda step, *_: steps.append(step))
    return steps


def test_a_killed_fine_tuning_goes_on_at_its_checkpoint(tmp_path):
    model = tiny(tmp_path / "base", "llama")
    code = "import sys; sys.path.insert(0, 'tests'); from test_chat_sft import *\ntuned(Path(sys.argv[1]), Path(sys.argv[2]))"
    words = [sys.executable, "-c", code, str(model), str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(2400):
        marks = (tmp_path / "out").glob("checkpoints/checkpoint-*/trainer_state.json")
        if any(int(m.parent.name.split("-")[1]) > 5 for m in marks) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=900)
    from dreamgym.pipeline.run import drop_torn_checkpoints

    drop_torn_checkpoints(tmp_path / "out" / "checkpoints")
    kept = [int(p.name.split("-")[1]) for p in (tmp_path / "out" / "checkpoints").glob("checkpoint-*")]
    assert max(kept) > 5, "beyond the first step that is reported"
    assert tuned(model, tmp_path / "out")[0] > max(kept), "it does not begin again"
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
