"""What a small causal LM answers to a request of the OpenAI-compatible API: whole, or in the events of a stream."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import torch


def answer_of(model: Any, tokenizer: Any, name: str, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """The JSON of a whole answer.

    Raises:
        ValueError: a request that is refused with 400, in its words.
    """
    ids, listed = _prompt(model, tokenizer, body, chat), _listed(body, chat)
    choices, written = [], 0
    for i in range(int(body.get("n") or 1)):
        tokens, reason = _generate(model, tokenizer, ids, body, i)
        written += len(tokens)
        choices.append(_choice(tokenizer, i, tokens, reason, body, [] if chat else ids, chat, listed))
    usage = {"prompt_tokens": len(ids), "completion_tokens": written, "total_tokens": len(ids) + written}
    kind = "chat.completion" if chat else "text_completion"
    return {"id": "made", "object": kind, "created": 0, "model": name, "choices": choices, "usage": usage}


def events_of(answer: dict[str, Any]) -> list[bytes]:
    """The same as the events of a stream, a word each."""
    chat = answer["object"] == "chat.completion"
    events = []
    for choice in answer["choices"] or []:
        text = choice["message"]["content"] if chat else choice["text"]
        for piece in [*re.split("(?= )", text), None]:
            said = {"content": piece} if piece is not None else {}
            delta = {"delta": said} if chat else {"text": piece or ""}
            end = choice["finish_reason"] if piece is None else None
            one = {"index": choice["index"], "logprobs": None, "finish_reason": end, **delta}
            kind = "chat.completion.chunk" if chat else "text_completion"
            events.append({**answer, "object": kind, "choices": [one], "usage": None})
    return [*(f"data: {json.dumps(event)}\n\n".encode() for event in events), b"data: [DONE]\n\n"]


def _prompt(model: Any, tokenizer: Any, body: dict[str, Any], chat: bool) -> list[int]:
    if chat:
        if not tokenizer.chat_template:
            raise ValueError("the model has no chat template")
        try:
            text = tokenizer.apply_chat_template(
                body["messages"],
                tokenize=False,
                add_generation_prompt=body.get("add_generation_prompt", True),
                continue_final_message=body.get("continue_final_message", False),
                **body.get("chat_template_kwargs", {}),
            )
        except Exception as error:  # templates raise what Jinja raises
            raise ValueError(f"the chat template: {error}") from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(body["prompt"])["input_ids"]
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and len(ids) + _most(body) > limit:
        raise ValueError(f"{len(ids)} tokens and max_tokens {_most(body)} are more than the context of {limit}")
    return list(ids)


def _generate(
    model: Any, tokenizer: Any, ids: list[int], body: dict[str, Any], choice: int
) -> tuple[list[tuple[int, torch.Tensor]], str]:
    """Tokens with the log-probabilities of the vocabulary in their place (V,), and why it ended."""
    temperature = float(1.0 if body.get("temperature") is None else body["temperature"])
    generator = torch.Generator().manual_seed(int(body.get("seed") or 0) * 1009 + choice)
    given, past, tokens = torch.tensor([ids]), None, []
    for _ in range(_most(body)):
        out = model(input_ids=given, past_key_values=past, use_cache=True)
        logprobs = out.logits[0, -1].double().log_softmax(-1)
        past = out.past_key_values
        if temperature == 0:
            token = int(logprobs.argmax())
        else:
            p = (logprobs / temperature).softmax(-1)
            order = p.argsort(descending=True)
            kept = order[(p[order].cumsum(0) - p[order]) < float(body.get("top_p") or 1.0)]
            token = int(kept[torch.multinomial(p[kept], 1, generator=generator)])
        if token == tokenizer.eos_token_id:
            return tokens, "stop"
        tokens.append((token, logprobs))
        if _stopped(tokenizer.decode([t for t, _ in tokens]), body) is not None:
            return tokens, "stop"
        given = torch.tensor([[token]])
    return tokens, "length"


def _choice(
    tokenizer: Any,
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
    head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in parts)
    text = whole.removeprefix(head)
    at = _stopped(text, body)
    text = text if at is None else text[:at]
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    made = {"index": index, "finish_reason": reason, "logprobs": None, **said}
    if listed:
        made["logprobs"] = (_chat_logprobs if chat else _logprobs)(tokenizer, tokens, listed)
    return made


def _top(tokenizer: Any, logprobs: torch.Tensor, listed: int) -> list[tuple[str, float]]:
    values, ids = logprobs.topk(min(listed, len(logprobs)))
    return [(tokenizer.decode([int(i)]), float(v)) for v, i in zip(values, ids, strict=True)]


def _chat_logprobs(tokenizer: Any, tokens: list[tuple[int, torch.Tensor]], listed: int) -> dict[str, Any]:
    content = []
    for token, logprobs in tokens:
        top = [{"token": text, "logprob": value, "bytes": None} for text, value in _top(tokenizer, logprobs, listed)]
        text = tokenizer.decode([token])
        content.append({"token": text, "logprob": float(logprobs[token]), "bytes": None, "top_logprobs": top})
    return {"content": content, "refusal": None}


def _logprobs(tokenizer: Any, tokens: list[tuple[int, torch.Tensor]], listed: int) -> dict[str, Any]:
    texts = [tokenizer.decode([token]) for token, _ in tokens]
    offsets = list(itertools.accumulate([0, *map(len, texts)]))[: len(texts)]
    top = [dict(reversed(_top(tokenizer, logprobs, listed))) for _, logprobs in tokens]
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
