"""An OpenAI-compatible server over a real socket, backed by a real small causal LM, with faults on demand.

In a test:

    with serving(model, tokenizer) as server:
        server.faults = ["429", "truncated"]      # of the next requests, in order of arrival
        ...  # server.url is the base URL, server.requests what came

By hand, with a tiny model of random weights or any model:

    python -m tests.servers_made
    python -m tests.servers_made --model DIR --port 8000 --faults ok,ok,429,slow      # in turns

It has /v1/models, /v1/completions and /v1/chat/completions: n, max_tokens, temperature, top_p, seed, stop,
log-probabilities, streams, and of vLLM's additions continue_final_message and chat_template_kwargs. It knows no keys:
whoever asks is answered. POST {"model": DIR} to /v1/load makes it serve that directory, under its path as name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from tests.answers_made import answer_of, events_of

FAULTS = {
    "ok": "none",
    "400": "refused: this request is wrong",
    "401": "refused: wrong key (the answer repeats it, as servers do)",
    "402": "refused: no money left",
    "429": "too many requests, with Retry-After",
    "500": "an error of the server",
    "503": "no room",
    "timeout": "no answer until `stall` seconds have passed",
    "truncated": "half of the JSON, as if it were whole; of a stream, of one event",
    "cut": "half of the body or of the events, then the connection closes",
    "no_logprobs": "an answer without log-probabilities",
    "empty": "an answer without choices",
    "null": "null where the choices should be",
    "one": "one choice, whatever n says, as some servers do",
    "slow": "the answer in many pieces over `stall` seconds",
}
_REFUSALS = {"400": "bad request", "401": "bad key", "402": "no money", "429": "too many requests"}
_REFUSALS |= {"500": "an error", "503": "no room"}


@dataclass
class ModelServer:
    """What the server knows.

    Attributes:
        faults: names of `FAULTS` for the next requests of text, taken as they come; an iterator may go on for ever.
        stall: seconds of a time-out and of a slow answer.
        retry_after: the header of a 429.
        requests, headers: what came, faulty ones too; answered: how many were answered in full.
        log: receives these requests, a line of JSON each.
    """

    model: Any
    tokenizer: Any
    name: str = "tiny"
    faults: Any = field(default_factory=list)
    stall: float = 1.0
    retry_after: str = "0"
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: int = 0
    log: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def next_fault(self) -> str:
        """The fault of the request that has just come."""
        with self.lock:
            if isinstance(self.faults, list):
                return self.faults.pop(0) if self.faults else "ok"
            return str(next(self.faults))

    def load(self, path: str) -> None:
        """Serves another model from now on."""
        model, tokenizer = _loaded(path)
        with self.lock:
            self.model, self.tokenizer, self.name = model, tokenizer, path

    def finish(self, request: dict[str, Any]) -> None:
        """Counts a request that was answered in full."""
        with self.lock:
            self.answered += 1
            if self.log is not None:
                with open(self.log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(request) + "\n")

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a whole answer.

        Raises:
            ValueError: a request that is refused with 400, in its words.
        """
        with self.lock, torch.no_grad():  # one model, and threads in any order
            return answer_of(self.model, self.tokenizer, self.name, body, chat=path.endswith("/chat/completions"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    made: ModelServer

    def do_GET(self) -> None:
        known = self.path.rstrip("/") == "/v1/models"
        models = {"object": "list", "data": [{"id": self.made.name, "object": "model", "created": 0, "owned_by": "us"}]}
        self._json(200 if known else 404, models if known else _error("no such page"))

    def do_POST(self) -> None:
        made = self.made
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except ValueError:  # the client gave up before it had said all
            self.close_connection = True
            return None
        if self.path == "/v1/load":
            made.load(body["model"])
            return self._json(200, {})
        with made.lock:
            made.requests.append({"path": self.path, **body})
            made.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path not in ("/v1/completions", "/v1/chat/completions"):
            return self._json(404, _error("no such page"))
        if body.get("model") != made.name:
            return self._json(404, _error(f"no model {body.get('model')!r}"))
        fault = made.next_fault()
        if fault in _REFUSALS:
            words = f"{_REFUSALS[fault]} {self.headers['Authorization'] if fault == '401' else ''}"
            return self._json(int(fault), _error(words), {"Retry-After": made.retry_after} if fault == "429" else {})
        if fault == "timeout":
            made.closing.wait(made.stall)
            self.close_connection = True
            return None
        try:
            answer = made.answer(self.path, {**body, "n": 1} if fault == "one" else body)
        except ValueError as error:
            return self._json(400, _error(str(error)))
        if fault == "no_logprobs":
            answer["choices"] = [{**choice, "logprobs": None} for choice in answer["choices"]]
        if fault in ("empty", "null"):
            answer["choices"] = [] if fault == "empty" else None
        if body.get("stream"):
            self._stream(events_of(answer), fault)
        else:
            self._whole(json.dumps(answer).encode(), fault)
        if fault in ("ok", "no_logprobs", "one", "slow"):
            made.finish(body)
        return None

    def _whole(self, content: bytes, fault: str) -> None:
        if fault == "truncated":
            content = content[: len(content) // 2]
        self._head(200, len(content))
        if fault == "cut":
            self._write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "slow":
            self._in_pieces([content[i : i + 16] for i in range(0, len(content), 16)])
        else:
            self._write(content)

    def _stream(self, events: list[bytes], fault: str) -> None:
        """In chunks, the last one empty: without it a client knows that the connection was cut."""
        half = len(events) // 2
        if fault == "truncated":
            events = [*events[:half], events[half][: len(events[half]) // 2] + b"\n\n", events[-1]]
        if fault == "cut":
            events = events[:half]
        chunks = [f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in events]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if fault == "slow":
            self._in_pieces(chunks)
        else:
            self._write(b"".join(chunks))
        if fault == "cut":
            self.close_connection = True
        else:
            self._write(b"0\r\n\r\n")

    def _in_pieces(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._write(piece)
            if self.made.closing.wait(self.made.stall / len(pieces)):
                break

    def _json(self, status: int, content: dict[str, Any], more: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self._head(status, len(text), more or {})
        self._write(text)

    def _head(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        try:
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:  # the client has given up
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "made", "code": None}}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a judge sends many at once


@contextmanager
def serving(model: Any, tokenizer: Any, **options: Any) -> Iterator[ModelServer]:
    """A server on a free port of this machine (or `port`), until the block ends."""
    port = options.pop("port", 0)
    made = ModelServer(model, tokenizer, **options)
    http = _Http(("127.0.0.1", port), type("Handler", (_Handler,), {"made": made}))
    made.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _loaded(path: str | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if path is not None:
        return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    from tests.preferences.judges.made import judge_model

    with tempfile.TemporaryDirectory() as folder:
        return judge_model(Path(folder))


def main() -> None:
    """Serves a model until ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults: " + ", ".join(f"{name} ({what})" for name, what in FAULTS.items()),
    )  # fmt: skip
    parser.add_argument("--model", help="directory or hub id of a causal language model [a tiny one, made on the spot]")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", default="tiny", help="what the model is called in requests")
    parser.add_argument("--faults", default="ok", help="names separated by commas, taken in turns")
    parser.add_argument("--log", help="file that receives the requests that were answered")
    parser.add_argument("--stall", type=float, default=60.0, help="seconds of a time-out or a slow answer")
    given = parser.parse_args()
    names = given.faults.split(",")
    if unknown := set(names) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    options = {"name": given.name, "port": given.port, "faults": itertools.cycle(names), "stall": given.stall}
    options["log"] = given.log
    with serving(*_loaded(given.model), **options) as made:
        print(f"model {made.name} at {made.url}; ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
