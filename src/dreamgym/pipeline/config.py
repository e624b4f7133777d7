"""The one configuration of a run: its sections and keys, what each means, and what they may be together.

It is read from a YAML file and ``key=value`` overrides by ``dreamgym.pipeline.config_file``, and saved with the run.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dreamgym.curriculum.config import GeneratorConfig, SamplerConfig
from dreamgym.endpoint.config import EndpointConfig
from dreamgym.experience.chat import EndpointReply
from dreamgym.experience.teach import AnnotatorConfig
from dreamgym.lm.lora import Lora
from dreamgym.replay.rerank import RerankConfig
from dreamgym.rl.config import RLConfig
from dreamgym.rl.monitors import Limits


class Section(BaseModel):
    """Keys of the configuration. A section of which only some keys are given keeps, for the others, the defaults of its place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_place(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        places = {k: f.default.model_dump(exclude_unset=True) for k, f in cls.model_fields.items() if isinstance(f.default, Section)}
        return data | {k: default | data[k] for k, default in places.items() if isinstance(data.get(k), dict)}


class Optimisation(Section):
    """A supervised stage (see ``dreamgym.lm.fit.FitConfig``)."""

    learning_rate: float = Field(2e-3, gt=0)
    epochs: float = Field(1.0, gt=0)
    row_length: int = Field(256, ge=64)
    rows: int = Field(24, ge=1)


class Prompt(Section):
    """What the experience model is shown (see ``dreamgym.experience.model.ExperienceConfig``)."""

    reasoning: bool = True
    sheet: bool = True
    k: int = Field(1, ge=0)
    history: int = Field(0, ge=0)
    """Earlier steps of the episode shown."""
    best_last: bool = True
    """The most similar experience last, next to the action; false = first."""
    budget: int = Field(160, ge=1)
    """Tokens of one reply of the local model."""


class Remote(Section):
    """An experience model behind an OpenAI-compatible server, instead of a local one: nothing is trained."""

    server: EndpointConfig
    reply: EndpointReply = EndpointReply()


class Pretrained(Section):
    """A pretrained chat LLM, fine-tuned as the experience model by TRL's SFTTrainer."""

    model: str
    """A hub name or a folder; its tokenizer needs a chat template."""
    lora: Lora | None = Lora()
    """null = train all weights."""
    learning_rate: float = Field(1e-4, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch: int = Field(1, ge=1)
    """Conversations (or packed rows) per device and step."""
    accumulation: int = Field(16, ge=1)
    max_length: int = Field(4096, ge=128)
    """Tokens of one conversation; longer ones are refused, not cut."""
    packing: bool = True
    retrieval_dropout: float = Field(0.1, ge=0, le=1)
    """Chance that a retrieved experience is left out of a training prompt."""
    checkpoint_every: int = Field(200, ge=1)
    reply: EndpointReply = EndpointReply()
    generation_batch: int = Field(16, ge=1)
    """Replies generated side by side in this process."""


class Opinion(Section):
    """A success in the dream counts only where this agrees too: a judge (an LLM with its own prompt), or a program (which may decide)."""

    judge: EndpointConfig | None = None
    verifier: str | None = None
    """``module:function``; function(instruction, state, actions) -> bool."""
    decides: bool = False
    """The verifier is asked after every step, and grants what the experience model does not see, precedent or not."""

    @model_validator(mode="after")
    def _one(self) -> "Opinion":
        if (self.judge is None) == (self.verifier is None):
            raise ValueError("give either judge or verifier")
        if self.decides and self.judge:
            raise ValueError("decides is for a verifier; a judge is asked of successes only")
        return self


class Uncertainty(Section):
    """Steps of which the experience model is not sure are invalid (see ``dreamgym.experience.cautious``)."""

    samples: int = Field(4, ge=1)
    """Further draws per new step, at temperature 1."""
    above: float = Field(0.5, ge=0, lt=1)
    """A larger share of draws that say otherwise makes the step invalid."""


class Experience(Section):
    uncertainty: Uncertainty | None = None
    """Cut dreamed episodes where the experience model is not sure; null = never."""
    second_opinion: Opinion | None = None
    """Who else must agree to a success; null = nobody."""
    pretrained: Pretrained | None = None
    """Fine-tune a pretrained chat LLM instead of the tiny base language model; null = no."""
    endpoint: Remote | None = None
    """Play the environment through a server (fine-tuned there, or training-free); null = train a local model."""
    precedent: bool = True
    """A success needs an action of a form that has won in the logs, where their successes recur (``experience/precedent.py``)."""
    prompt: Prompt = Prompt()
    fit: Optimisation = Optimisation(learning_rate=2e-3, epochs=0.75, row_length=320, rows=16)
    teacher: Literal["own", "generic", "endpoint"] = "own"
    """``own`` = the environment's teacher, ``generic`` = before/after difference only, ``endpoint`` = the LLM of ``annotator``."""
    annotator: AnnotatorConfig | None = None

    @model_validator(mode="after")
    def _no_idle_section(self) -> "Experience":
        if self.endpoint and self.pretrained:
            raise ValueError("give either endpoint or pretrained: a served model is not trained here")
        if self.annotator and self.teacher != "endpoint":
            raise ValueError("annotator needs teacher: endpoint")
        if self.teacher == "endpoint" and not self.annotator:
            raise ValueError("teacher: endpoint needs an LLM: set experience.annotator.server")
        if self.annotator and self.endpoint:
            raise ValueError("annotator: a model behind endpoint is shown logged steps and no annotations; leave it out")
        if (a := self.annotator) and a.budget_usd is not None and (a.server.price_in is None or a.server.price_out is None):
            raise ValueError("annotator.budget_usd needs annotator.server.price_in and price_out (US dollars per million tokens)")
        return self


class Embeddings(Section):
    """An embeddings endpoint of an OpenAI-compatible server."""

    base_url: str
    model: str
    dimension: int = Field(ge=1)


class Admission(Section):
    """What a dreamed episode must be to come into the buffer (see ``dreamgym.replay.enrichment``); give one or more."""

    surprise: float | None = Field(None, gt=0)
    """The experience model was sure: no reply less probable than exp(-surprise) (local models only)."""
    novelty: float | None = Field(None, gt=-1, le=1.01)
    """Some step's nearest experience has a cosine below this; 1.01 = only equal episodes of one iteration are left out."""
    judge: EndpointConfig | None = None
    """An LLM finds one of its steps consistent and not made up."""

    @model_validator(mode="after")
    def _some(self) -> "Admission":
        if self.surprise is None and self.novelty is None and self.judge is None:
            raise ValueError("give surprise, novelty or judge; to take all in, use enrichment: store_all")
        return self


class Buffer(Section):
    """The run's replay buffer: by what it is searched, and what of the dream comes in."""

    encoder: str = "hashing"
    """``hashing`` (no download), or a sentence-transformers model by hub name or folder (the extra [sentence])."""
    embeddings: Embeddings | None = None
    """A server that encodes instead."""
    order: RerankConfig = RerankConfig()
    """By cosine alone, or also diverse (``mmr``), by words (``bm25``), with a share of real ones (``real_share``)."""
    enrichment: Literal["store_all", "real_frozen", "filtered"] = "store_all"
    """Of valid dreamed episodes: all come in (as in the paper), none, or those that ``admit`` lets in."""
    admit: Admission | None = None
    capacity: int | None = Field(None, ge=1)
    """Steps held beside the logs, which never go; the oldest dreamed episodes go first. null = no limit."""

    @model_validator(mode="after")
    def _no_idle_key(self) -> "Buffer":
        if (self.enrichment == "filtered") != (self.admit is not None):
            raise ValueError("enrichment: filtered and admit go together")
        if self.capacity and self.enrichment == "real_frozen":
            raise ValueError("capacity has nothing to do where nothing comes in (enrichment: real_frozen)")
        if self.order.real_share and self.enrichment == "real_frozen":
            raise ValueError("order.real_share has nothing to do where all is real (enrichment: real_frozen)")
        if self.embeddings and self.encoder != "hashing":
            raise ValueError("give either encoder or embeddings")
        return self


class Acting(Section):
    """What the policy reads and writes (see ``dreamgym.rl.context``)."""

    preset: Literal["tiny", "paper"] = "tiny"
    """``tiny``: instruction and carried state in, action out; ``paper``: chat prompt with history in, ``<think>`` and ``<action>`` out."""
    context: Literal["steps", "transcript"] = "steps"
    """Each step a prompt of its own, or an episode one growing transcript, in which nothing is rendered again."""
    history: int = Field(2, ge=0)
    """Earlier steps in the prompt of the preset ``paper``; a transcript has them all."""
    tokens: int = Field(12, ge=2)
    """Tokens of one reply, its end included; longer ones are cut (demonstrations that are longer are refused)."""
    lora: Lora | None = None
    """Train small matrices beside the frozen base, from the warm start on; null = all weights."""

    @property
    def plain(self) -> bool:
        """Whether it is a policy that Early Experience and the baselines can train."""
        return (self.preset, self.context, self.lora) == ("tiny", "steps", None)


class WarmStart(Section):
    """The policy's supervised start on logged successes."""

    method: Literal["imitation", "iwm", "self_reflection"] = "imitation"
    """What was demonstrated is imitated; or Early Experience (``dreamgym.pipeline.early_experience``): other actions are executed for real
    in demonstrated states, and what they do is predicted first (implicit world modelling), or said against them (self-reflection)."""
    alternatives: int = Field(3, ge=1)
    """Other actions per demonstrated state (Early Experience)."""
    demonstrations: int | None = None
    """How many successful logged episodes; None = the expert's only, as recorded. 0 = all successes (``sft_all``)."""
    fit: Optimisation = Optimisation(learning_rate=1e-3, epochs=20, rows=4)

    @model_validator(mode="after")
    def _no_idle_key(self) -> "WarmStart":
        if self.method == "imitation" and self.alternatives != type(self).model_fields["alternatives"].default:
            raise ValueError("alternatives has no effect with method: imitation; leave it out")
        return self


class Reinforcement(RLConfig):
    """Policy learning: how (``dreamgym.rl.config.RLConfig``), and its limits."""

    real_budget: int | None = Field(None, ge=1)
    """Hard stop for real steps, probes included; None = no limit."""
    probe_every: int = Field(0, ge=0)
    """Iterations between checks on the probe panel, by which the checkpoint is chosen; 0 = keep the last."""
    patience: int = Field(0, ge=0)
    """End after that many probes without a better one; 0 = never."""

    @model_validator(mode="after")
    def _patience_probes(self) -> "Reinforcement":
        if self.patience and not self.probe_every:
            raise ValueError("patience needs probe_every: without probes nothing is seen to get better")
        return self

    @model_validator(mode="after")
    def _turns_differ(self) -> "Reinforcement":
        if self.credit == "turns" and self.gamma == 1:
            raise ValueError("credit: turns with gamma: 1 is credit: episode, as an episode is paid once, at its end; give gamma below 1")
        return self


class Dreaming(Reinforcement):
    """Policy learning in the dream."""

    iterations: int = Field(12, ge=0)
    environment: Literal["dream", "real"] = "dream"
    """``dream``, or ``real`` for the control arm (its steps are counted)."""
    audit_floor: float = Field(0.8, ge=0, le=1)
    """Training in the dream is refused where an audit found success precision or next-state macro below this; 0 = never."""

    @model_validator(mode="after")
    def _budget_has_steps(self) -> "Dreaming":
        if self.environment == "dream" and self.real_budget and not self.probe_every:
            raise ValueError("real_budget: a dream takes real steps for its probes alone; give probe_every too, or leave it out")
        return self

    @model_validator(mode="after")
    def _gap_is_seen(self) -> "Dreaming":
        if self.watch.dream_gap not in (None, Limits().dream_gap) and not self.probe_every:
            raise ValueError("watch.dream_gap needs probe_every: the gap is that between the dream and a probe")
        return self


class SimToReal(Reinforcement):
    """Policy learning in the real environment after the dream (``dreamgym train --stages dream,real``).

    How it learns it takes from ``rl`` where that says so and this section does not; not its limits and ``iterations``.
    """

    iterations: int = Field(20, ge=0)
    tasks: int = Field(24, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    real_budget: int | None = Field(5000, ge=1)
    """The paper's."""


class Curriculum(SamplerConfig):
    """Which tasks the policy trains on, and whether new ones are written (``dreamgym.curriculum``)."""

    generator: GeneratorConfig = GeneratorConfig()
    hindsight: bool = False
    """What failed episodes did achieve becomes a task too, where the environment's adapter has ``achieved(task, episode)``."""
    writing: int = Field(8, ge=1)
    """How often the local experience model sees each logged task as an example of writing, where tasks are written, and as often its world
    as an example of what it lacks."""

    @model_validator(mode="after")
    def _hindsight_writes(self) -> "Curriculum":
        if self.hindsight and not self.synthetic:
            raise ValueError("hindsight writes tasks: give synthetic, the largest share of them, too")
        return self

    @model_validator(mode="after")
    def _nothing_starves(self) -> "Curriculum":
        if self.by_value == 1:
            raise ValueError("by_value: 1 leaves no draw to what was played least often, so that some tasks never come; give less than 1")
        return self


class Evaluation(Section):
    panel: Literal["probe", "test", "unseen"] = "test"
    games: int = Field(150, ge=1)
    samples: int = Field(1, ge=1)
    """Episodes of each game; with more than one pass@k tells them apart."""
    probe_games: int = Field(50, ge=1)
    audit_games: int = Field(60, ge=1)
    """Held-out games of the audit."""
    temperature: float = Field(0.4, ge=0)
    judge: EndpointConfig | None = None
    """An LLM that scores dreamed steps in ``dreamgym audit --long`` (consistency, diversity, informativeness, hallucination, 0..2)."""


class Continued(Section):
    """Go on from an earlier run with what its policy met in the real environment (``dreamgym.pipeline.continued``).

    Logs, experience model and policy come from there; ``logs``, ``collect_tasks``, ``base``, ``pretrain`` and ``sft`` have no effect.
    """

    run: str
    """The earlier run's directory."""
    mistakes: int = Field(4, ge=1)
    """How often a local experience model reads, per epoch, an episode in which it would have been wrong (others once)."""
    rehearsal: float = Field(2.0, ge=0)
    """Old logged steps that it reads again, per step that it reads of new episodes; else it forgets them."""

    @field_validator("run")
    @classmethod
    def _wherever_it_is_read(cls, value: str) -> str:
        return str(Path(value).expanduser().absolute())


class Preference(Section):
    """DPO on what the logs saw fail in demonstrated states (TRL's ``DPOTrainer``)."""

    epochs: float = Field(0.5, gt=0)
    learning_rate: float = Field(1e-5, gt=0)
    """With ten times as much a tiny policy forgets what it imitates (docs/development.md)."""
    beta: float = Field(0.1, gt=0)


class Baselines(Section):
    """Policies that learn without rewards from the same logs (``dreamgym baseline``)."""

    dpo: Preference = Preference()
    alternatives: int = Field(3, ge=1)
    """Other actions per demonstrated state (Early Experience)."""


TAKEN = RLConfig.model_fields.keys() - {"iterations"}
"""Keys that ``s2r`` has from ``rl`` where it does not say otherwise."""


class RunConfig(Section):
    """Everything that decides a run."""

    env: str = "textworld/easy"
    """``textworld/easy``, ``/standard`` (with ``/current``: states without what closed containers hold), ``/hard`` (three foods, six
    rooms), ``/mixed`` (one to three foods, one room or six; both with longer prompts and replies, see docs/learning.md) or
    ``module:object``."""
    logs: str = "shipped"
    """``shipped``, ``collect`` (record new ones), or a path to a .jsonl or .jsonl.xz file of episodes."""
    base: str = "shipped"
    """``shipped``, ``tiny`` (train one on the logs' text), or a folder or hub name of a causal LM."""
    seed: int = 0
    continued: Continued | None = None
    """The run that this one continues; null = it begins from logs."""
    collect_tasks: int = 620
    """Training tasks recorded where ``logs: collect``."""
    pretrain: Optimisation = Optimisation(learning_rate=2e-3, epochs=3)
    """Training of the base language model where ``base: tiny``."""
    experience: Experience = Experience()
    curriculum: Curriculum = Curriculum()
    replay: Buffer = Buffer()
    policy: Acting = Acting()
    sft: WarmStart = WarmStart()
    rl: Dreaming = Dreaming()
    s2r: SimToReal = SimToReal()
    evaluation: Evaluation = Evaluation()
    baselines: Baselines = Baselines()
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Where metrics of policy learning go beside ``metrics.jsonl`` (each an extra of its name)."""
    threads: int = Field(0, ge=0)
    """Threads of torch; 0 = all cores."""

    @model_validator(mode="before")
    @classmethod
    def _s2r_learns_as_rl(cls, data: dict[str, object]) -> dict[str, object]:
        rl, own = data.get("rl"), data.get("s2r")
        if not isinstance(rl, dict) or not isinstance(own, dict | None):
            return data
        taken = {k: v for k, v in rl.items() if k in TAKEN}
        return {**data, "s2r": taken | (own or {})}

    @model_validator(mode="after")
    def _no_idle_key(self) -> "RunConfig":
        if self.policy.context == "transcript" and self.policy.history != Acting().history:
            raise ValueError("policy.history has no effect with policy.context: transcript, which has all steps; leave it out")
        if self.sft.method != "imitation" and not self.policy.plain:
            raise ValueError("sft.method: Early Experience needs policy.preset: tiny, policy.context: steps and no policy.lora")
        if self.policy.preset == "tiny" and (self.rl.invalid_action_penalty or self.s2r.invalid_action_penalty):
            raise ValueError("invalid_action_penalty (rl, s2r) needs policy.preset: paper; a reply of the preset tiny cannot be malformed")
        if (c := self.continued) and (self.experience.endpoint or self.experience.pretrained) and (c.mistakes, c.rehearsal) != (4, 2.0):
            raise ValueError("continued.mistakes and continued.rehearsal are for a local experience model; leave them out")
        if self.replay.admit and self.replay.admit.surprise and (self.experience.endpoint or self.experience.pretrained):
            raise ValueError("replay.admit.surprise needs a local experience model; a chat model does not say how sure it is")
        if self.experience.prompt.k == 0 and self.replay != Buffer():
            raise ValueError("replay: nothing is retrieved with experience.prompt.k: 0; leave the section out")
        if self.rl.environment == "real" and (self.replay.enrichment != "store_all" or self.replay.capacity):
            raise ValueError("replay: nothing comes in with rl.environment: real; leave enrichment, admit and capacity out")
        return self

    @model_validator(mode="after")
    def _curriculum_can_work(self) -> "RunConfig":
        chosen, rl = self.curriculum, self.rl
        if chosen.synthetic and not int(chosen.synthetic * rl.tasks):
            raise ValueError(f"curriculum.synthetic: {chosen.synthetic:g} of rl.tasks: {rl.tasks} is no whole task; raise one of them")
        if chosen.synthetic and rl.group == 1 and not chosen.clusters:
            raise ValueError("curriculum.synthetic: rl.group: 1 gives no task a value, and so no parents; add curriculum.clusters")
        if chosen.value == "progress" and not self.experience.prompt.reasoning:
            raise ValueError("curriculum.value: progress is read from the dream's reasoning, which experience.prompt.reasoning leaves out")
        return self


def config_hash(value: BaseModel | dict[str, object]) -> str:
    """A short stable hash of a configuration or a part of one."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=5).hexdigest()
