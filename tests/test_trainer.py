"""The trainer, GRPO and PPO: it learns, goes on exactly where it was, and stops by name where it cannot."""

import copy
import random
from statistics import fmean

import pytest

from dreamgym.core.env import Step
from dreamgym.core.errors import ConfigError, TrainingError
from dreamgym.core.types import Task
from dreamgym.rl.config import RLConfig

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from dreamgym.lm.local import LocalLM  # noqa: E402
from dreamgym.lm.tiny import tiny_llama, train_tokenizer  # noqa: E402
from dreamgym.rl.credit import step_credit  # noqa: E402
from dreamgym.rl.critic import Critic  # noqa: E402
from dreamgym.rl.policy import ACTION_TOKENS, Policy  # noqa: E402
from dreamgym.rl.rollout import rollouts  # noqa: E402
from dreamgym.rl.trainer import Trainer, check_head  # noqa: E402

TASKS = [Task(id=f"t/{letter}", instruction=letter, first_state=()) for letter in "cdm"]
ALGORITHMS = {
    "grpo": {},
    "dr_grpo": {"std": "none", "loss": "fixed"},
    "rloo": {"advantage": "leave_one_out", "loss": "sequence", "clip_high": 0.28},
    "gigpo": {"credit": "anchors", "gamma": 0.95},
    "ppo": {"advantage": "gae", "gae_lambda": 0.95, "critic_learning_rate": 1e-2},
    "as_sampled": {"old": "sampled"},
    "bounded": {"kl": 0.01, "entropy": 0.001, "importance_cap": 2.0, "dual_clip": 3.0},
}


class TwoLetters:
    """Won by an action that holds the instruction's letter, the second time."""

    async def reset(self, task, seed):
        self.letter, self.seen, self.steps = task.instruction, 0, 0
        return "[room] mat: here", {"instruction": task.instruction}

    async def step(self, action):
        self.steps += 1
        self.seen += self.letter in action
        won = self.seen == 2
        return Step("[room] dog: here" if self.seen else "[room] mat: here", float(won), won, not won and self.steps == 4, {})

    async def close(self):
        pass


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    words = ["the", "cat", "sat", "on", "@do", "mat", "dog", "ran", "to", "@go", "carrot"]
    rng = random.Random(0)
    tokenizer = train_tokenizer([" " + " ".join(rng.choices(words, k=12)) for _ in range(400)], 300)
    folder = tmp_path_factory.mktemp("start")
    LocalLM(tiny_llama(len(tokenizer), 0, width=32, layers=2), tokenizer).save(folder)
    return folder


def a_trainer(start, keys, iterations=14, lm=None):
    lm = lm or LocalLM.load(start)
    config = RLConfig(**{"iterations": iterations, "group": 16, "learning_rate": 2e-2, "row_length": 128} | keys)

    def play(seats):
        return rollouts(Policy(lm, 1.0), lambda seat, lockstep: TwoLetters(), seats, "real", "letters")

    return Trainer(lm, config, play, start)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_learns_and_resumes_exactly(start, tmp_path, name):
    torch.set_num_threads(1)
    trainer = a_trainer(start, ALGORITHMS[name])
    rates = []
    for n in range(14):
        if n == 11:
            trainer.save(tmp_path)
        trainer.iterate(TASKS)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    metrics = trainer.progress.metrics
    rewards = [m["reward"] for m in metrics]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.3
    assert rates == [pytest.approx(2e-2 * (1 - n / 14) * (0.5 if n == 0 else 1)) for n in range(14)], "warms up, then falls linearly"
    gaps = [m["sampler_gap"] for m in metrics if "sampler_gap" in m]
    assert len(gaps) == (0 if name == "as_sampled" else 14)
    assert all(0 < g < 0.05 for g in gaps), "the trainer sees the probabilities that were sampled from"
    if name == "ppo":
        assert metrics[0]["explained"] == pytest.approx(0, abs=1e-6), "a critic begins at 0 everywhere"
    if name == "bounded":
        assert metrics[0]["kl"] < max(m["kl"] for m in metrics)
        assert all(m["entropy"] > 0 for m in metrics)

    again = a_trainer(start, ALGORITHMS[name], lm=LocalLM.load(tmp_path))
    again.resume(tmp_path)
    for _ in range(3):
        again.iterate(TASKS)
    timeless = [{k: v for k, v in m.items() if not k.endswith("_s")} for m in again.progress.metrics]
    assert timeless == [{k: v for k, v in m.items() if not k.endswith("_s")} for m in metrics]
    for a, b in zip(again.lm.model.parameters(), trainer.lm.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_of_a_file_lie_where_those_of_a_run_do(start):
    """In 32 bits a product's last bit depends on the offset, and with it whether a run goes on exactly."""
    models = (LocalLM.load(start).model, Critic(start, RLConfig(advantage="gae"), 0).model)
    assert {p.data_ptr() % 64 for m in models for p in m.parameters()} == {torch.empty(7).data_ptr() % 64}


def test_a_critic_learns_which_states_are_worth_more(start):
    lm = LocalLM.load(start)
    states = {f" @task {letter} @state {seen} room here @do": worth for letter in "cdm" for seen, worth in (("mat", 0.2), ("dog", 0.9))}
    prompts, aims = [tuple(i) for i in lm.encode_batch(list(states))], list(states.values())
    critic = Critic(start, RLConfig(advantage="gae", critic_learning_rate=3e-3, critic_passes=4), lm.pad)
    for _ in range(25):
        critic.fit(prompts, critic.values(prompts), aims, 8)
    assert critic.values(prompts) == pytest.approx(aims, abs=0.1)


def test_every_step_counts_alike_in_a_critic_and_a_share_of_nothing_moves_nothing(start):
    lm = LocalLM.load(start)
    short, long = (tuple(lm.encode(f" @task cat @state mat room {'the dog ran ' * n} @do")) for n in (0, 90))
    critic = Critic(start, RLConfig(advantage="gae"), lm.pad)
    assert len(critic._batches([short, long] * 20)) > 1, "they are not read together"
    prompts, aims = [short] * 9 + [long], [1.0] * 9 + [0.0]
    before = critic.values(prompts)
    told = critic.fit(prompts, before, aims, 8, (0, 1), share=0.0)
    assert told["value_loss"] == pytest.approx(0.9 / 2), "half the mean square error over steps, however long they are"
    assert critic.values(prompts) == before


def test_a_critic_reads_short_and_long_states_in_one_update(start):
    """Else its last updates are of long ones alone, and what it says of short ones goes with them."""
    lm = LocalLM.load(start)
    prompts = [tuple(lm.encode(f" @task cat @state mat room {'the dog ran ' * n} @do")) for n in range(120)]
    critic, read = Critic(start, RLConfig(advantage="gae", row_length=128, rows=1, critic_passes=1), lm.pad), list[int]()
    own = critic._read
    critic._read = lambda batch: (read.append(len(batch[-1])), own(batch))[1]
    for iteration in range(2):
        read.clear()
        critic.fit(prompts, [0.0] * 120, [0.5] * 120, 4, (0, iteration))
        assert read != sorted(read)
        per = -(-len(read) // 4)
        for first in range(0, len(read), per):
            assert max(read[first : first + per]) - min(read[first : first + per]) > (max(read) - min(read)) / 3


def test_ppo_goes_on_from_the_critic_beside_its_policy(start, tmp_path):
    trainer = a_trainer(start, ALGORITHMS["ppo"])
    trainer.iterate(TASKS)
    trainer.save(tmp_path)
    prompts = [s.prompt for r in trainer.played for s in r.samples]
    values = trainer.critic.values(prompts)
    assert any(values)
    after = Trainer(LocalLM.load(tmp_path), trainer.config, trainer.play, tmp_path)
    assert after.critic.values(prompts) == pytest.approx(values, abs=1e-6)
    assert not any(Trainer(LocalLM.load(start), trainer.config, trainer.play, start).critic.values(prompts))


def test_a_divergence_holds_the_policy_to_its_start(start):
    moved = {}
    for weight in (0.0, 5.0):
        trainer = a_trainer(start, {"kl": weight} if weight else {}, iterations=6)
        before = copy.deepcopy(trainer.lm.model)
        for _ in range(6):
            trainer.iterate(TASKS)
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            apart = torch.softmax(trainer.lm.model(ids).logits, -1) - torch.softmax(before(ids).logits, -1)
        moved[weight] = float(apart.abs().sum())
    assert moved[5.0] < moved[0.0] / 2


def test_a_gradient_that_is_not_a_number_ends_by_name_and_changes_nothing(start):
    trainer = a_trainer(start, {})
    trainer.iterate(TASKS)
    with torch.no_grad():
        kept = [p.clone() for p in trainer.lm.model.parameters()]
    trainer.lm.model.lm_head.register_full_backward_hook(lambda module, into, out: (into[0] * float("nan"),))
    with pytest.raises(TrainingError, match="iteration 1: the gradient is nan"):
        trainer.iterate(TASKS)
    assert all(torch.equal(a, b) for a, b in zip(kept, trainer.lm.model.parameters(), strict=True))
    assert trainer.progress.iteration == 1


def test_a_torn_critic_ends_by_name_before_it_is_kept(start):
    trainer = a_trainer(start, ALGORITHMS["ppo"])
    kept = [p.detach().clone() for p in trainer.critic.model.parameters()]
    trainer.critic.model.score.register_full_backward_hook(lambda module, into, out: (into[0] * float("nan"),))
    with pytest.raises(TrainingError, match=r"critic's gradient is nan; .* lower critic_learning_rate"):
        trainer.iterate(TASKS)
    assert all(torch.equal(a, b) for a, b in zip(kept, trainer.critic.model.parameters(), strict=True))


def test_ppo_needs_no_group_and_groups_are_not_judged_then(start):
    trainer = a_trainer(start, ALGORITHMS["ppo"] | {"group": 1}, iterations=4)
    for _ in range(4):
        _, _, metrics = trainer.iterate(TASKS)
    assert metrics["updates"] > 0
    assert not {"zero_variance_groups", "identical_groups"} & metrics.keys()


def test_what_invalid_episodes_do_not_tell_is_left_out(start):
    class Broken(TwoLetters):
        async def step(self, action):
            return Step("[room] mat: here", None, False, True, {})

    for keys in ({}, ALGORITHMS["ppo"]):
        trainer = a_trainer(start, keys)
        trainer.play = lambda seats, lm=trainer.lm: rollouts(Policy(lm, 1.0), lambda seat, lockstep: Broken(), seats, "real", "letters")
        _, groups, metrics = trainer.iterate(TASKS)
        assert metrics["invalid"] == 1.0
        assert metrics["updates"] == 0
        assert not {"reward", "reward_sd", "no_effect"} & metrics.keys(), "an invalid episode is no reward of 0"
        assert set(map(tuple, groups.values())) == {(None,) * 16}


def test_averages_over_sequences_and_a_divergence_see_samples_without_advantage(start):
    for keys, every in (({}, False), ({"loss": "sequence"}, True), ({"kl": 0.1}, True), ({"entropy": 0.1}, True)):
        trainer = a_trainer(start, keys)
        trainer.iterate(TASKS[:1])
        played, _, _ = trainer.iterate(TASKS[:1])
        tokens = sum(len(s.ids) for r in played for s in r.samples)
        seen = trainer.progress.metrics[-1].get("policy_tokens", 0.0)
        assert (seen == tokens) if every else (seen <= tokens)


def test_a_critic_reads_each_prompt_alone(start):
    critic = Critic(start, RLConfig(advantage="gae", row_length=64, rows=1), 0)
    assert critic.values([(3, 4, 5), (6,)]) == [0.0, 0.0]
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.model.score.weight)
    prompts = [tuple(range(3, 3 + n)) for n in (2, 30, 7, 2, 40, 9)]
    together = critic.values(prompts)
    assert together == pytest.approx([critic.values([p])[0] for p in prompts], abs=0.03)
    assert together[0] == together[3]
    assert len(set(together)) == 5


@pytest.mark.parametrize("loss", ["token", "sequence", "fixed"])
def test_an_update_has_the_same_gradient_in_one_part_and_in_many_and_sample_by_sample(start, loss):
    torch.set_num_threads(1)
    gradients = {}
    for cut, (length, rows) in {"whole": (4096, 1000), "parts": (64, 1)}.items():
        trainer = a_trainer(start, {"loss": loss, "row_length": length, "rows": rows, "updates": 1, "passes": 1, "max_grad_norm": 1e9})
        parameters, step = trainer.lm.trained, trainer.optimizer.step

        def kept(parameters=parameters, step=step, cut=cut):
            gradients[cut] = [p.grad.clone() for p in parameters]
            step()

        trainer.optimizer.step = kept
        played, _, metrics = trainer.iterate(TASKS)
        assert metrics["updates"] == 1
    lm, total, count = LocalLM.load(start), torch.zeros(()), 0
    for rollout, row in zip(played, step_credit(played, trainer.config), strict=True):
        for s, advantage in zip(rollout.samples, row, strict=True):
            if loss == "token" and abs(advantage) < 1e-6:
                continue
            logits = lm.model(torch.tensor([[*s.prompt, *s.ids]])).logits[0, len(s.prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(s.ids)[:, None])
            total = total - advantage * {"token": logp.sum(), "sequence": logp.mean(), "fixed": logp.sum() / ACTION_TOKENS}[loss]
            count += len(s.ids) if loss == "token" else 1
    (total / count).backward()
    for whole, parts, alone in zip(gradients["whole"], gradients["parts"], lm.trained, strict=True):
        assert float((whole - parts).norm() / alone.grad.norm()) < 0.03, "16 bits on many CPUs"
        assert float((whole - alone.grad).norm() / alone.grad.norm()) < 0.03


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("Granite", {"logits_scaling": 4.0}, "GraniteForCausalLM scales or caps its logits"),
        ("Cohere", {"logit_scale": 0.0625}, "CohereForCausalLM scales or caps its logits"),
        ("GPT2", {}, "GPT2LMHeadModel"),
    ],
)
def test_a_base_whose_logits_are_more_than_its_heads_is_refused_before_it_is_trained(start, family, keys, message):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    if family == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2}
    tokenizer = LocalLM.load(start).tokenizer
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **sizes, **keys)
    with pytest.raises(ConfigError, match=message):
        check_head(LocalLM(transformers.AutoModelForCausalLM.from_config(config), tokenizer))
