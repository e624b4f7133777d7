"""64 dreamed episodes at once through the endpoint client, one call in five faulty; held against the same without faults.

    python -m benchmarks.faults        # writes benchmarks/results/faults.json

The server (``benchmarks/loopback.py``) speaks real HTTP and answers each logged (state, action) with what really happened, so
every reward that a dreamed episode gets can be held against its log. Faults: 429 with Retry-After 0.2 s, 500, no reply, a
reset connection, half a JSON, a reply of another schema, a truncated thought. The timeout is 5 times the median call.

``time_ratio`` = (wall time with faults - the waits) / (wall time without). Every episode goes on when its own reply is there, so
of all waits (pauses that the server demanded, and timeouts) only those of the episode that ended last are taken off;
``time_ratio_raw`` takes off none.
"""

import statistics
import time
from collections.abc import Sequence

from benchmarks.cells import HERE, commit, measure_code
from benchmarks.loopback import FAULTS, RETRY_AFTER_S, LoopbackServer, from_logs, sections
from dreamgym.core.files import read_episodes, write_json
from dreamgym.core.types import Episode
from dreamgym.endpoint.client import Endpoint
from dreamgym.endpoint.config import Ask, EndpointConfig
from dreamgym.experience.chat import EndpointReply
from dreamgym.experience.endpoint import EndpointExperienceModel
from dreamgym.experience.prompt import ExperienceConfig
from dreamgym.pipeline.fidelity import Replayed
from dreamgym.pipeline.play import play_dream
from dreamgym.pipeline.results import versions
from dreamgym.pipeline.stages import shipped
from dreamgym.replay.buffer import ReplayBuffer
from dreamgym.rl.rollout import Rollout, Seat

EPISODES, CONCURRENCY, LATENCY_S, FAULTY = 64, 16, 0.4, 0.2


def waits_of_the_last(server: LoopbackServer, timeout_s: float) -> float:
    """Seconds that the episode whose call came last had to wait: instructions name the episodes here."""
    last = instruction(str(server.bodies[-1]["messages"][-1]["content"]))  # type: ignore[index]
    each = {"429": RETRY_AFTER_S, "hang": timeout_s}
    return sum(each.get(f, 0.0) for prompt, faults in server.met().items() if instruction(prompt) == last for f in faults)


def instruction(prompt: str) -> str:
    return sections(prompt)["Task"][0]


def logged(n: int) -> list[Episode]:
    """``n`` logged episodes that ended by themselves, of as many instructions: wins first, as far as there are any, then losses."""
    found: dict[str, Episode] = {}
    for e in sorted(read_episodes(shipped("logs-easy.jsonl.xz")), key=lambda e: (e.stop != "won", e.id)):
        if e.stop in ("won", "lost") and len(e.transitions) >= 4:
            found.setdefault(e.task.instruction, e)
    return list(found.values())[:n]


def play(episodes: Sequence[Episode], faulty: float, timeout_s: float) -> tuple[list[Rollout], float, Endpoint, LoopbackServer]:
    buffer = ReplayBuffer()
    buffer.add(episodes)
    with LoopbackServer(from_logs(episodes), LATENCY_S, faulty) as server:
        endpoint = Endpoint(EndpointConfig(base_url=server.url, model="scripted", concurrency=CONCURRENCY, timeout_s=timeout_s))
        model = EndpointExperienceModel(endpoint, ExperienceConfig(k=2), EndpointReply(), buffer.snapshot())
        start = time.perf_counter()
        played = play_dream(Replayed({(e.task.id, 0): e for e in episodes}), model, 30, [Seat(e.task, 0, 0) for e in episodes])
        wall = time.perf_counter() - start
        endpoint.close()
    return played, wall, endpoint, server


def main() -> None:
    episodes = logged(EPISODES)
    median = statistics.median(_call_s() for _ in range(9))
    clean, clean_wall, *_ = play(episodes, 0.0, 5 * median)
    assert [r.episode.stop for r in clean] == [e.stop for e in episodes], "the clean dream is the log"
    played, wall, endpoint, server = play(episodes, FAULTY, 5 * median)
    waits = waits_of_the_last(server, 5 * median)
    dreams = [r.episode for r in played]
    wins = {e.task.id for e in episodes if e.stop == "won"}
    result = {
        "episodes": len(episodes),
        "logged_wins": len(wins),
        "valid": sum(d.valid for d in dreams),
        "invalid": sum(not d.valid for d in dreams),
        "invalid_reasons": {s: n for s in {d.stop for d in dreams if not d.valid} if (n := sum(d.stop == s for d in dreams))},
        "lost": len(episodes) - len(dreams),
        "accidental_rewards": sum(bool(d.dream_reward()) and d.task.id not in wins for d in dreams),
        "missed_rewards": sum(d.valid and not d.dream_reward() and d.task.id in wins for d in dreams),
        "time_ratio": round((wall - waits) / clean_wall, 3),
        "time_ratio_raw": round(wall / clean_wall, 3),
        "wall_s": round(wall, 1),
        "clean_wall_s": round(clean_wall, 1),
        "waits_s": round(waits, 1),
        "timeout_s": round(5 * median, 2),
        "calls": endpoint.counts["calls"],
        "attempts": endpoint.counts["attempts"],
        "faults": {k: server.injected[k] for k in FAULTS},
        "concurrency": CONCURRENCY,
        "latency_s": LATENCY_S,
        "code": measure_code("faults"),
        "commit": commit(),
        "versions": versions(),
    }
    write_json(HERE / "results" / "faults.json", result)
    for name, value in result.items():
        if name != "versions":
            print(f"{name:20} {value}")


def _call_s() -> float:
    """Seconds of one call that meets no fault."""
    with LoopbackServer(lambda body: "x", LATENCY_S) as server:
        endpoint = Endpoint(EndpointConfig(base_url=server.url, model="scripted"))
        endpoint.ask([Ask(messages=(("user", "warm up"),), budget=1)])
        start = time.perf_counter()
        endpoint.ask([Ask(messages=(("user", "x"),), budget=1)])
        wall = time.perf_counter() - start
        endpoint.close()
    return wall


if __name__ == "__main__":
    main()
