"""A loopback server of embeddings, for tests of what encodes through one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Embeddings(BaseHTTPRequestHandler):
    """``/v1/embeddings`` over real HTTP: the length of a text and a constant; every third request meets a 429 first."""

    count = 0
    dimension = 2
    status = 200

    def log_message(self, *_):
        pass

    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        type(self).count += 1
        busy = type(self).count % 3 == 1
        vectors = [[float(len(t)), *[3.0] * (self.dimension - 1)] for t in texts]
        rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        body = {"object": "list", "data": rows[::-1], "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        data = json.dumps({"error": {"message": "no"}} if busy or self.status != 200 else body).encode()
        self.send_response(429 if busy else self.status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), ("Retry-After", "0.05")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def serving() -> str:
    """The address of a new server, which ends with the process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
