"""An OpenAI-compatible chat server on loopback that answers from logged steps, and fails on purpose where asked.

It speaks real HTTP; what it says about a logged (state, action) is what the real environment did. Faults are drawn by the
request and the number of times it came: the same run meets the same faults.
"""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dreamgym.core.seeding import keyed_rng
from dreamgym.core.state import make_state
from dreamgym.core.types import Episode

FAULTS = ("429", "500", "hang", "reset", "half", "schema", "thought")
RETRY_AFTER_S = 0.2
Respond = Callable[[dict[str, object]], str]


def sections(user: str) -> dict[str, list[str]]:
    """The sections of a step's prompt, by the first word of their names; JSON strings are read."""
    found: dict[str, list[str]] = {}
    for block in ("\n" + user).split("\n## ")[1:]:
        name, *lines = block.strip().split("\n")
        found[name.split()[0].strip(":")] = [json.loads(x) if x.startswith('"') else x for x in lines if x != "(none)"]
    return found


def from_logs(episodes: Iterable[Episode]) -> Respond:
    """Answers with the logged outcome of the (instruction, state, action) in the prompt; of any other: nothing changes."""
    known = {(e.task.instruction, t.state, t.action): t for e in episodes for t in e.steps}

    def respond(body: dict[str, object]) -> str:
        asked = sections(body["messages"][-1]["content"])  # type: ignore[index]
        step = known.get((asked["Task"][0], make_state(asked["Current"]), asked["The"][0]))
        reply = {"reasoning": "as the logs have it", "removed": [], "added": [], "outcome": "continue"}
        if step is not None:
            ends = {"go": "continue", "won": "success", "lost": "failure"}
            reply |= {"removed": list(step.removed), "added": list(step.added), "outcome": ends[step.outcome]}
        return json.dumps(reply)

    return respond


class LoopbackServer:
    """``with LoopbackServer(respond, latency_s=0.2, faulty=0.2) as server: ... server.url``"""

    def __init__(
        self, respond: Respond, latency_s: float = 0.0, faulty: float = 0.0, kinds: tuple[str, ...] = FAULTS, seed: int = 0
    ) -> None:
        self.respond, self.latency_s, self.faulty, self.kinds, self.seed = respond, latency_s, faulty, kinds, seed
        self.bodies: list[dict[str, object]] = []
        self.injected: Counter[str] = Counter()
        self._times: Counter[str] = Counter()
        self._met: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.refusal = "oops"
        self.envelope: str | None = None
        """What every good answer is replaced by, where it is set: a server of another make."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Quiet(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "LoopbackServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, raw: bytes) -> str | None:
        """The fault that this request meets now; None = it is answered."""
        name = hashlib.sha256(raw).hexdigest()
        with self._lock:
            self._times[name] += 1
            rng = keyed_rng(self.seed, name, self._times[name])
            fault = str(rng.choice(self.kinds)) if rng.random() < self.faulty else None
            body = json.loads(raw)
            if fault:
                self.injected[fault] += 1
                self._met.setdefault(str(body["messages"][-1]["content"]), []).append(fault)
            self.bodies.append(body)
        return fault

    def met(self) -> dict[str, list[str]]:
        """The faults so far, by prompt (a step that is asked anew with another seed has the same)."""
        with self._lock:
            return {prompt: list(faults) for prompt, faults in self._met.items()}


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that were reset on purpose are no news."""


class _Handler(BaseHTTPRequestHandler):
    owner: LoopbackServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        fault = self.owner.fault_of(raw)
        if fault == "429":
            return self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": str(RETRY_AFTER_S)})
        if fault and fault.isdigit():
            return self._send(int(fault), json.dumps({"error": {"message": self.owner.refusal}}).encode())
        if fault == "hang":
            self.owner.stopping.wait(600)
            self.close_connection = True
            return None
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return None
        time.sleep(self.owner.latency_s)
        text, ended = self.owner.respond(json.loads(raw)), "stop"
        if fault == "schema":
            text = json.dumps({"observation": "You win!", "reward": 1, "done": True})
        if fault == "thought":
            text, ended = "", "length"
        completion = {
            "id": "c", "object": "chat.completion", "created": 0, "model": "scripted",
            "choices": [{"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": len(raw) // 4, "completion_tokens": len(text) // 4, "total_tokens": (len(raw) + len(text)) // 4},
        }  # fmt: skip
        data = (self.owner.envelope or json.dumps(completion)).encode()
        return self._send(200, data[: len(data) // 2] if fault == "half" else data)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the caller is gone
            self.close_connection = True
