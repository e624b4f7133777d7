"""One self-contained page of a run directory: what it cost, what it gained, how far its dream can be trusted.

    write_report(Path("runs/mine"))     # -> runs/mine/report.html

The page is made of the files that the stages left, so it can be written at any time; what has not run is named with the
command that runs it. Figures of success come from real episodes only, recomputed from their rows. What the experience
model gave is shown too, because reading it is how one learns where the dream is wrong, but always marked as dreamed.
"""

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from dreamgym.core.errors import DataError, MissingExtraError
from dreamgym.core.files import episode_of_line, read_episodes, read_json, write_atomic
from dreamgym.core.types import Episode, StopReason
from dreamgym.pipeline.config_file import load_config
from dreamgym.pipeline.results import evaluation_figures, successes_by_task
from dreamgym.pipeline.stats import paired_interval
from dreamgym.report.chart import Chart, Series, whole_ticks
from dreamgym.report.long_audit import long_audit_view
from dreamgym.report.tasks import tasks_view

T = TypeVar("T")
Json = dict[str, Any]

COMMANDS = {"collect": "collect", "annotate": "annotate", "base": "train-experience", "train-experience": "train-experience",
            "warm-start": "train", "eval-sft": "eval", "train": "train", "eval-policy": "eval", "audit": "audit"}
"""The stages in their order, and the ``dreamgym`` command that runs each."""
SHOWN = 10
"""Episodes shown of each kind, and examples of errors."""
ENDS = {StopReason.WON: "won", StopReason.LOST: "lost", StopReason.MAX_STEPS: "step cap reached, not won",
        StopReason.ABANDONED: "actions used up, not won", StopReason.INVALID_REPLY: "invalid: the reply could not be parsed",
        StopReason.INVALID_CHANGE: "invalid: the change did not fit the state", StopReason.INVALID_ENV: "invalid: the environment failed",
        StopReason.INVALID_UNCERTAIN: "invalid: the experience model was not sure",
        StopReason.INVALID_SUCCESS: "invalid: a win by an action that never won in the logs"}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the run directory ``folder`` and return its path. Trains nothing, loads no model."""
    try:
        import jinja2
    except ImportError as e:
        raise MissingExtraError("jinja2", "report") from e
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"pct": percent, "num": number, "usd": dollars, "dur": duration}
    template = environment.from_string(resources.files("dreamgym.report").joinpath("page.html.j2").read_text(encoding="utf-8"))
    try:
        page = template.render(context(RunFiles(folder)))
    except jinja2.UndefinedError as e:
        raise DataError(f"{folder}: a file of figures lacks a field ({e}); delete it and its mark in stages/, run that stage anew") from e
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


@dataclass
class Evaluation:
    """Real episodes of one panel: before the dream, after it, and after learning on in the real environment."""

    panel: str
    before: list[Episode] = field(default_factory=list)
    after: list[Episode] = field(default_factory=list)
    s2r: list[Episode] = field(default_factory=list)

    def view(self) -> Json:
        before, after = successes_by_task(self.before), successes_by_task(self.after)
        interval = paired_interval([after], [before], ("after", "before")) if before.keys() & after.keys() else None
        return {"panel": self.panel, "held_out": self.panel in ("test", "unseen"), "before": success(self.before),
                "after": success(self.after), "s2r": success(self.s2r), "n": len({e.task.id for e in self.after or self.before if e.valid}),
                "interval": interval, "figures": self.figures(),
                "invalid": sum(not e.valid for e in self.before + self.after + self.s2r)}

    def figures(self) -> list[Json]:
        """Of each arm that was evaluated: pass@k up to the episodes that a game has, steps, and how many of them changed nothing."""
        arms = (("before", self.before), ("after", self.after), ("after learning on for real", self.s2r))
        return [{"arm": name, **evaluation_figures(episodes)} for name, episodes in arms if episodes]


MADE_BY = {"audit": "audit", "results": None, "fidelity": "long-audit", "attacks": "attack"}
"""Files of figures, and the stage that makes each."""


class RunFiles:
    """The files of a run directory, each absent until its stage has run."""

    def __init__(self, folder: Path) -> None:
        saved = folder / "config.yaml"
        if not saved.is_file():
            raise DataError(f"{folder}: holds no config.yaml, so it is no run directory; name one with --run, or make one with: "
                            f"dreamgym quickstart --run {shlex.quote(str(folder))}")
        self.folder, self.config = folder, load_config(saved)
        self.config_text = saved.read_text(encoding="utf-8")
        self.stages: dict[str, Json] = {p.stem: dict(read_json(p)) for p in sorted((folder / "stages").glob("*.json"))}
        self.audit, self.results, self.fidelity, self.attacks = (
            dict(read_json(p)) if p.exists() and (stage is None or stage in self.stages) else None  # else it is of a former policy
            for p, stage in ((folder / f"{name}.json", stage) for name, stage in MADE_BY.items())
        )
        self.metrics, self.s2r_metrics = (
            [m for _, m, _ in json_lines(folder / f"{stage}_run/metrics.jsonl")] for stage in ("policy", "s2r")
        )
        self.drafts: list[Json] = [d for _, d, _ in json_lines(folder / "policy_run/tasks.jsonl")]
        self.evaluations = self._evaluations()
        self.twins = self._twins()

    def _evaluations(self) -> list[Evaluation]:
        """All panels that were played, that of the configuration first."""
        found: dict[str, Evaluation] = {}
        for arm, when in (("sft", "before"), ("policy", "after"), ("s2r", "s2r")):
            for path in sorted(self.folder.glob(f"eval-{arm}-*.jsonl")):
                panel = path.stem.removeprefix(f"eval-{arm}-")
                episodes = list(read_episodes(path))
                if any(e.source != "real" for e in episodes):
                    raise DataError(f"{path}: holds a dreamed episode; only real ones are results, evaluate anew")
                setattr(found.setdefault(panel, Evaluation(panel)), when, episodes)
        return sorted(found.values(), key=lambda e: (e.panel != self.config.evaluation.panel, e.panel))

    def _twins(self) -> list[tuple[Episode, Episode]]:
        path = self.folder / "audit-twins.jsonl"
        episodes = list(read_episodes(path)) if path.exists() else []
        pairs = list(zip(episodes[::2], episodes[1::2], strict=False))
        if len(episodes) % 2 or any(t.id != f"{d.id}~twin" for d, t in pairs):
            raise DataError(f"{path}: a dreamed win and its real twin must alternate; delete it and run the audit anew")
        return pairs

    def dreamed_sample(self) -> list[Episode]:
        """Training episodes spread over the iterations: some won, some not, some invalid."""
        path = self.folder / "policy_run/episodes.jsonl"
        kinds: dict[str, list[tuple[int, str]]] = {"won": [], "failed": [], "invalid": []}
        for n, data, text in json_lines(path):
            stop = str(data.get("stop"))
            kinds["won" if stop == "won" else "invalid" if stop.startswith("invalid") else "failed"].append((n, text))
        chosen = [line for kind, share in (("won", 4), ("failed", 4), ("invalid", 2)) for line in spread(kinds[kind], share)]
        rest = sorted({line for lines in kinds.values() for line in lines} - set(chosen))
        try:
            return [episode_of_line(text) for n, text in sorted(chosen + spread(rest, SHOWN - len(chosen)))]
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise DataError(f"{path}: a line is not an episode ({type(e).__name__}: {e}); delete the file or run the stage anew") from e


def json_lines(path: Path) -> Iterator[tuple[int, Json, str]]:
    """Number, object and text of each line of an append-only file; a torn last line (killed while writing) is left out."""
    if not path.exists():
        return
    torn = ""
    with open(path, encoding="utf-8", errors="replace") as f:
        for n, text in enumerate(f, start=1):
            if torn:
                raise DataError(torn)
            try:
                value = json.loads(text)
            except json.JSONDecodeError as e:
                torn = f"{path}:{n}: not JSON ({e.msg}); mend or delete this line"
                continue
            if not isinstance(value, dict):
                raise DataError(f"{path}:{n}: holds a {type(value).__name__}, an object is needed")
            yield n, value, text


def success(episodes: Sequence[Episode]) -> float | None:
    """Real success over valid episodes; ``real_success`` refuses dreamed ones."""
    valid = [e.real_success() for e in episodes if e.valid]
    return sum(valid) / len(valid) if valid else None


def spread(items: Sequence[T], n: int) -> list[T]:
    """At most ``n`` of ``items``, evenly spread from the first to the last, in their order."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(n - 1, 1))] for i in range(n)]


def context(run: RunFiles) -> Json:
    """All that the template is given."""
    command = {s: f"dreamgym {c} --run {shlex.quote(str(run.folder))}" for s, c in COMMANDS.items()}
    dreaming, evaluations = run.config.rl.environment == "dream", [e.view() for e in run.evaluations]
    return {"name": run.folder.resolve().name, "config": run.config, "config_text": run.config_text, "results": run.results or {},
            "stages": run.stages, "command": command, "dreaming": dreaming, "evaluations": evaluations, "metrics": run.metrics,
            "budget": budget(run, dreaming), "charts": _charts(run, dreaming, evaluations), "groups": browse(run, dreaming),
            "audit": run.audit, "long": _long(run), "attacks": run.attacks, "errors": error_examples(run.audit or {}),
            "paid": paid(run), "tasks": tasks_view(run.folder, run.metrics, run.drafts, dreaming),
            "longest": max((number_of(s, "wall_s") for s in run.stages.values()), default=0.0)}


def _long(run: RunFiles) -> Json | None:
    try:
        return long_audit_view(run.fidelity)
    except KeyError as e:
        raise DataError(f"{run.folder / 'fidelity.json'}: lacks the field {e}; delete it and run: dreamgym audit --long") from e


def number_of(data: Json, key: str) -> float:
    value = data.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def budget(run: RunFiles, dreaming: bool) -> list[tuple[str, int | None, str]]:
    """Real environment steps by purpose; None where the stage has not run."""
    def of(stage: str, key: str) -> int | None:
        return int(number_of(run.stages[stage], key)) if stage in run.stages else None

    played: int | None = None
    for e in run.evaluations:
        for stage, episodes in (("eval-sft", e.before), ("eval-policy", e.after), *([("eval-s2r", e.s2r)] if e.s2r else [])):
            counted = of(stage, "real_steps") if e.panel == run.config.evaluation.panel else None
            played = (played or 0) + (sum(len(x.transitions) for x in episodes) if counted is None else counted)
    earlier = of("collect", "earlier_real_steps") if run.config.continued else None
    return [("logs", of("collect", "real_steps"), "what both models learn from"),
            *([("earlier runs", earlier, "trained and chose the policy that this run began with")] if run.config.continued else []),
            *([("warm start", of("warm-start", "learning_real_steps"), "tries other actions in demonstrated states (Early Experience)")]
              if run.config.sft.method != "imitation" else []),
            ("RL", of("train", "rl_real_steps"), "trains the policy" + (": in the dream only, no real step" if dreaming else "")),
            *([("S2R", of("sim-to-real", "rl_real_steps"), "trains the policy after the dream"),
               ("S2R probe", of("sim-to-real", "probe_real_steps"), "chooses its checkpoint")] if "sim-to-real" in run.stages else []),
            ("probe", of("train", "probe_real_steps"), "chooses the checkpoint; nothing is trained on it"),
            ("evaluation", played, "judges before and after; nothing is trained on it"),
            ("audit", int(number_of(run.audit, "real_steps_audit")) if run.audit else None, "judges the dream; nothing is trained on it")]


def paid(run: RunFiles) -> list[tuple[str, object, object, object]]:
    """What was asked of LLMs behind servers, and by whom: tokens in, tokens out, US dollars; each None where it is not known."""
    train, annotate, fidelity = run.stages.get("train", {}), run.stages.get("annotate", {}), run.fidelity or {}
    asked = [("annotating logs", annotate, "", "usd"), ("experience model, during RL", train, "experience_", "usd"),
             ("judge of dreamed successes, during RL", train, "judge_", "judge_usd"),
             ("judge of what comes into the buffer, during RL", train, "admission_", "admission_usd"),
             ("judge of dreamed steps, in the long audit", fidelity, "judge_", "judge_usd")]
    return [(who, found.get(f"{name}tokens_in"), found.get(f"{name}tokens_out"), found[usd])
            for who, found, name, usd in asked if usd in found]


def error_examples(audit: Json) -> list[dict[str, str]]:
    """One-step errors, taken in turn from each class of step."""
    by_class: dict[str, list[dict[str, str]]] = {}
    for error in audit.get("errors") or []:
        by_class.setdefault(str(error.get("class")), []).append(error)
    return [e for i in range(SHOWN) for errors in by_class.values() for e in errors[i:i + 1]][:SHOWN]


def browse(run: RunFiles, dreaming: bool) -> list[Json]:
    """Groups of episodes to read."""
    false = [p for p in run.twins if p[1].stop != StopReason.WON]
    true = [p for p in run.twins if p[1].stop == StopReason.WON]
    some = spread(false, max(SHOWN - len(true), SHOWN - 2))
    twins = [episode_view(d, t) for d, t in some + spread(true, SHOWN - len(some))]
    groups = [{"title": "Dreamed wins and their real twins", "episodes": twins, "stages": ["train", "audit"],
               "text": "The same actions in the dream and in the real game, false wins first. The first step where they part is marked."}]
    where = "Training episodes in the " + ("dream" if dreaming else "real environment")
    groups.append({"title": where, "episodes": [episode_view(e) for e in run.dreamed_sample()], "stages": ["train"],
                   "text": "Spread over the iterations: won, not won and invalid ones."})
    e = run.evaluations[0] if run.evaluations else Evaluation("")
    shown, arm = (e.after, "after") if e.after else (e.before, "before")
    won = [x for x in shown if x.stop == StopReason.WON]
    failed = [x for x in shown if x.stop != StopReason.WON]
    real = spread(failed, max(SHOWN // 2, SHOWN - len(won)))
    real += spread(won, SHOWN - len(real))
    before = {(x.task.id, x.member): ENDS[x.stop] for x in e.before} if arm == "after" else {}
    notes = {x.id: f"Before training, this game: {before[x.task.id, x.member]}." for x in real if (x.task.id, x.member) in before}
    groups.append({"title": f"Real evaluation episodes, {arm} training", "stages": ["eval-sft", "eval-policy"],
                   "episodes": [episode_view(x, note=notes.get(x.id, "")) for x in real],
                   "text": f"Panel {e.panel}: failures first, then wins."})
    return groups


def episode_view(episode: Episode, twin: Episode | None = None, note: str = "") -> Json:
    """An episode as rows of (action, reasoning, dreamed outcome, real outcome)."""
    dreamed, real = (episode, twin) if episode.source == "dream" else (None, episode)
    rows: list[Json] = []
    parted = 0
    for i, t in enumerate(episode.transitions):
        if twin is not None and not parted and (t.change, t.outcome) not in [(u.change, u.outcome) for u in twin.transitions[i:i + 1]]:
            parted = i + 1
        rows.append({"n": i + 1, "action": t.action, "reasoning": t.reasoning, "parted": parted == i + 1,
                     "dreamed": _effect(dreamed, i), "real": _effect(real, i)})
    ends = [f"{who}: {ENDS[e.stop]}" for who, e in (("dreamed", dreamed), ("real", real)) if e is not None]
    if parted:
        note = f"Dream and real game part at step {parted}."
    where = f"iteration {episode.policy_version}" if dreamed and twin is None else episode.task.panel
    return {"title": f"{'; '.join(ends)} · {episode.task.id} · {where} · {len(rows)} steps", "ends": ends, "rows": rows, "note": note,
            "task": episode.task, "dreamed": dreamed is not None, "real": real is not None, "reasons": any(r["reasoning"] for r in rows)}


def _effect(episode: Episode | None, i: int) -> Json | None:
    """What step ``i`` did; None where the episode had ended by then."""
    if episode is None or i >= len(episode.transitions):
        return None
    t = episode.transitions[i]
    end = ENDS[episode.stop] if i + 1 == len(episode.transitions) else ""
    return {"removed": t.removed, "added": t.added, "none": t.reward is not None and not t.change, "end": end}


def _charts(run: RunFiles, dreaming: bool, evaluations: list[Json]) -> list[Chart]:
    """Those of policy learning, then those of learning on in the real environment, where that has begun."""
    probes, later = (run.stages.get(stage, {}).get("probes", []) for stage in ("train", "sim-to-real"))
    return [*charts(run.metrics, dreaming, evaluations, probes),
            *charts(run.s2r_metrics, False, evaluations, later, ("after", "s2r"), "Learning on for real: training reward and real success")]


def charts(metrics: list[Json], dreaming: bool, evaluations: list[Json], probed: Sequence[Json] = (),
           arms: tuple[str, str] = ("before", "after"), title: str = "Training reward and real success") -> list[Chart]:
    """Success and health per iteration. The x axis counts finished iterations, so a probe lies right of its rollouts.

    ``probed``: all probes, which a finished stage knows (``metrics`` has those of iterations); ``arms``: the evaluations before and after.
    """
    def at(key: str, shift: int = 0) -> list[tuple[float, float]]:
        return [(number_of(x, "iteration") + shift, number_of(x, key)) for x in metrics if key in x]

    if not metrics:
        return []
    probes = [(number_of(p, "iteration"), number_of(p, "success")) for p in probed] or at("probe_real_success", 1)
    end = at("iteration", 1)[-1][0]
    kept = max(probes, key=lambda p: (p[1], p[0]))[0] if probes else end
    e: Json = evaluations[0] if evaluations else {"panel": "evaluation", **dict.fromkeys(arms)}
    real: list[tuple[float, float]] = [(x, e[k]) for x, k in zip((0.0, kept), arms, strict=True) if e[k] is not None]
    name, style = ("dreamed: training reward, not a result", "s-dream") if dreaming else ("real: training reward, not a result", "s-train")
    reward = [Series(name, style, "ring", at("reward"), joined=True),
              *([Series("real: success on the probe panel (chooses the checkpoint)", "s-probe", "triangle", probes)] if probes else []),
              Series(f"real: success on the {e['panel']} panel, before and after", "s-real", "square", real)]
    health = [Series("share of invalid episodes", "s-invalid", "ring", at("invalid"), joined=True),
              Series("share of groups without variance (nothing to learn)", "s-zero", "ring", at("zero_variance_groups"), joined=True),
              Series("share of steps that changed nothing", "s-idle", "ring", at("no_effect"), joined=True)]
    where = "dreamed" if dreaming else "real"
    titled = ((title, reward), (f"Health of the {where} training episodes", health))
    return [Chart(title, "finished iterations", end, whole_ticks(end), series) for title, series in titled]


def percent(value: object, unit: str = " %") -> str:
    """A share, e.g. ``84.3 %``; ``–`` where there is none."""
    return f"{100 * value:.{0 if value in (0, 1) else 1}f}{unit}" if _finite(value) else "–"


def number(value: object) -> str:
    """A whole number with thin spaces, or three digits."""
    return "–" if not _finite(value) else f"{value:,.0f}".replace(",", "\u202f") if value == int(value) else f"{value:.3g}"


def dollars(value: object) -> str:
    """US dollars, with cents from ten cents on."""
    return "–" if not _finite(value) else f"{value:.2g}" if value < 0.1 else f"{value:,.2f}".replace(",", "\u202f")


def duration(value: object) -> str:
    """Seconds for people."""
    if not _finite(value):
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.2f} h"


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
