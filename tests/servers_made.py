"""An OpenAI-compatible server over a real socket, backed by a real small causal LM, with faults on demand.

In a test:

    with serving(model, tokenizer) as server:
        server.faults = ["429", "truncated"]      # of the next requests, in order of arrival
        ...  # server.url is the base URL, server.requests what came

By hand, with any model directory:

    python -m tests.servers_made --model DIR --port 8000
    python -m tests.servers_made --model DIR --port 8000 --faults ok,ok,429,slow      # in turns

It has /v1/models, /v1/completions and /v1/chat/completions: n, max_tokens, temperature, top_p, seed, stop,
log-probabilities, streams, and of vLLM's additions continue_final_message and chat_template_kwargs. It knows no keys:
whoever asks is answered. POST {"model": DIR} to /v1/load makes it serve that directory, under its path as name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

FAULTS = {
    "ok": "none",
    "400": "refused: this request is wrong",
    "401": "refused: wrong key (the answer repeats it, as servers do)",
    "402": "refused: no money left",
    "429": "too many requests, with Retry-After",
    "500": "an error of the server",
    "503": "no room",
    "timeout": "no answer until `stall` seconds have passed",
    "truncated": "half of the JSON, as if it were whole",
    "cut": "half of the body, then the connection closes",
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
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
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
        chat = path.endswith("/chat/completions")
        ids = self._prompt(body, chat)
        listed = _listed(body, chat)
        choices, written = [], 0
        with self.lock, torch.no_grad():  # one model, and threads in any order
            for i in range(int(body.get("n") or 1)):
                tokens, reason = self._generate(ids, body, i, listed)
                written += len(tokens)
                choices.append(self._choice(i, tokens, reason, body, [] if chat else ids, chat, listed))
        usage = {"prompt_tokens": len(ids), "completion_tokens": written, "total_tokens": len(ids) + written}
        kind = "chat.completion" if chat else "text_completion"
        return {"id": "made", "object": kind, "created": 0, "model": self.name, "choices": choices, "usage": usage}

    def _prompt(self, body: dict[str, Any], chat: bool) -> list[int]:
        if chat:
            if not self.tokenizer.chat_template:
                raise ValueError("the model has no chat template")
            try:
                text = self.tokenizer.apply_chat_template(
                    body["messages"],
                    tokenize=False,
                    add_generation_prompt=body.get("add_generation_prompt", True),
                    continue_final_message=body.get("continue_final_message", False),
                    **body.get("chat_template_kwargs", {}),
                )
            except Exception as error:  # templates raise what Jinja raises
                raise ValueError(f"the chat template: {error}") from error
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(body["prompt"])["input_ids"]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) + _most(body) > limit:
            raise ValueError(f"{len(ids)} tokens and max_tokens {_most(body)} are more than the context of {limit}")
        return list(ids)

    def _generate(
        self, ids: list[int], body: dict[str, Any], choice: int, listed: int
    ) -> tuple[list[tuple[int, torch.Tensor]], str]:
        """Tokens with the log-probabilities of the vocabulary in their place (V,), and why it ended."""
        temperature = float(1.0 if body.get("temperature") is None else body["temperature"])
        generator = torch.Generator().manual_seed(int(body.get("seed") or 0) * 1009 + choice)
        given, past, tokens = torch.tensor([ids]), None, []
        for _ in range(_most(body)):
            out = self.model(input_ids=given, past_key_values=past, use_cache=True)
            logprobs = out.logits[0, -1].double().log_softmax(-1)
            past = out.past_key_values
            if temperature == 0:
                token = int(logprobs.argmax())
            else:
                p = (logprobs / temperature).softmax(-1)
                order = p.argsort(descending=True)
                kept = order[(p[order].cumsum(0) - p[order]) < float(body.get("top_p") or 1.0)]
                token = int(kept[torch.multinomial(p[kept], 1, generator=generator)])
            if token == self.tokenizer.eos_token_id:
                return tokens, "stop"
            tokens.append((token, logprobs))
            if _stopped(self.tokenizer.decode([t for t, _ in tokens]), body) is not None:
                return tokens, "stop"
            given = torch.tensor([[token]])
        return tokens, "length"

    def _choice(
        self,
        index: int,
        tokens: list[tuple[int, torch.Tensor]],
        reason: str,
        body: dict[str, Any],
        before: list[int],
        chat: bool,
        listed: int,
    ) -> dict[str, Any]:
        # what the tokens add to the prompt's text: alone, some tokenizers would drop the space before the first word
        parts = before, [*before, *(token for token, _ in tokens)]
        head, whole = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in parts)
        text = whole.removeprefix(head)
        at = _stopped(text, body)
        text = text if at is None else text[:at]
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        made = {"index": index, "finish_reason": reason, "logprobs": None, **said}
        if listed:
            made["logprobs"] = (self._chat_logprobs if chat else self._logprobs)(tokens, listed)
        return made

    def _top(self, logprobs: torch.Tensor, listed: int) -> list[tuple[str, float]]:
        values, ids = logprobs.topk(min(listed, len(logprobs)))
        return [(self.tokenizer.decode([int(i)]), float(v)) for v, i in zip(values, ids, strict=True)]

    def _chat_logprobs(self, tokens: list[tuple[int, torch.Tensor]], listed: int) -> dict[str, Any]:
        content = []
        for token, logprobs in tokens:
            top = [{"token": text, "logprob": value, "bytes": None} for text, value in self._top(logprobs, listed)]
            text = self.tokenizer.decode([token])
            content.append({"token": text, "logprob": float(logprobs[token]), "bytes": None, "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _logprobs(self, tokens: list[tuple[int, torch.Tensor]], listed: int) -> dict[str, Any]:
        texts = [self.tokenizer.decode([token]) for token, _ in tokens]
        offsets = list(itertools.accumulate([0, *map(len, texts)]))[: len(texts)]
        top = [dict(reversed(self._top(logprobs, listed))) for _, logprobs in tokens]
        own = [float(logprobs[token]) for token, logprobs in tokens]
        return {"tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}


def _listed(body: dict[str, Any], chat: bool) -> int:
    """How many alternatives are asked for; 0: no log-probabilities at all."""
    if chat:
        return max(1, int(body.get("top_logprobs") or 1)) if body.get("logprobs") else 0
    return int(body.get("logprobs") or 0)


def _most(body: dict[str, Any]) -> int:
    return int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)


def _stopped(text: str, body: dict[str, Any]) -> int | None:
    stops = body.get("stop") or []
    places = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
    return min((place for place in places if place >= 0), default=None)


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
            return self._stream(answer, slow=fault == "slow")
        content = json.dumps(answer).encode()
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
        if fault in ("ok", "no_logprobs", "one", "slow"):
            made.finish(body)
        return None

    def _stream(self, answer: dict[str, Any], *, slow: bool) -> None:
        chat = answer["object"] == "chat.completion"
        events = []
        for choice in answer["choices"]:
            text = choice["message"]["content"] if chat else choice["text"]
            for piece in [*text.split(" "), None]:
                said = {"content": piece} if piece is not None else {}
                delta = {"delta": said} if chat else {"text": piece or ""}
                end = choice["finish_reason"] if piece is None else None
                one = {"index": choice["index"], "logprobs": None, "finish_reason": end, **delta}
                kind = "chat.completion.chunk" if chat else "text_completion"
                events.append({**answer, "object": kind, "choices": [one], "usage": None})
        pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if slow:
            self._in_pieces([*pieces, b"data: [DONE]\n\n"])
        else:
            self._write(b"".join(pieces) + b"data: [DONE]\n\n")

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


def main() -> None:
    """Serves a model directory until ctrl-C."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults: " + ", ".join(f"{name} ({what})" for name, what in FAULTS.items()),
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="directory of a causal language model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", default="tiny", help="what the model is called in requests")
    parser.add_argument("--faults", default="ok", help="names separated by commas, taken in turns")
    parser.add_argument("--log", help="file that receives the requests that were answered")
    parser.add_argument("--stall", type=float, default=60.0, help="seconds of a time-out or a slow answer")
    given = parser.parse_args()
    names = given.faults.split(",")
    if unknown := set(names) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    model = AutoModelForCausalLM.from_pretrained(given.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    options = {"name": given.name, "port": given.port, "faults": itertools.cycle(names), "stall": given.stall}
    options["log"] = given.log
    with serving(model, tokenizer, **options) as made:
        print(f"model {made.name} at {made.url}; ctrl-C ends it")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
