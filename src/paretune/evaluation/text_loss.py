"""How well a model predicts a text: its loss in nats per token, with an interval and paired differences.

What alignment costs beside its objectives shows here first: the text is anything that nobody trained on.
Suffixes: N scored tokens, W tokens of a window, B windows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from paretune.errors import InputError
from paretune.evaluation.margins import mean_with_interval
from paretune.policy.reference import frozen

WINDOW = 1024  # where neither a person nor the model's context says less
_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class TextLoss:
    """A model's loss on a text.

    Args:
        losses: (N,) float64, -log probability of each scored token in nats.
        windows: (N,) the window that each was scored in, 0, 1, …
        tokens: (N,) the tokens themselves: losses of two models are paired where these are equal.
        bytes: of the whole text as UTF-8.
    """

    losses: np.ndarray
    windows: np.ndarray
    tokens: np.ndarray
    bytes: int


class Window(NamedTuple):
    """Tokens [begin, end) of a text are read, and those from `scored` on are scored."""

    begin: int
    scored: int
    end: int


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("invalid UTF-8", where=path, found=f"byte {error.start}") from error
    except OSError as error:
        raise InputError(f"cannot read the text: {error.strerror}", where=path) from error
    if not text.strip():
        raise InputError("an empty text", where=path)
    return text


def split(length: int, size: int, *, first: int) -> Iterator[Window]:
    """Windows of `size` tokens over a text of `length`, each half new: every token from `first` on is scored once, and
    beyond the first window with at least size // 2 tokens of the text before it."""
    new = size - size // 2
    yield Window(0, first, min(size, length))
    for end in range(size, length, new):
        yield Window(end - size // 2, end, min(end + new, length))


def text_loss(model: nn.Module, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = WINDOW) -> TextLoss:
    """Scores every token of a text once, in windows that overlap by half.

    Each window starts with BOS where the tokenizer puts one before a plain text; where it puts none, nothing precedes
    the text's first token, which is then read and not scored. The end of the text is not scored as a token.

    Args:
        model: causal language model, on its device; left in the mode it was in.
        text: as one string.
        window: most tokens that the model sees at once, BOS counted; at least 4.

    Raises:
        InputError: a window below 4 or beyond the model's context, or no token to score.
    """
    longest = context_of(model.config)
    if window < 4 or (longest is not None and window > longest):
        limit = "" if longest is None else f" and at most {longest}, the model's context"
        raise InputError("bad window", expected=f"at least 4 tokens{limit}", found=window)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = _leading(tokenizer)
    windows = list(split(len(ids), window - len(bos), first=1 - len(bos)))
    if len(ids) <= windows[0].scored:
        raise InputError("no token to score", found=f"a text of {len(ids)} tokens")
    device = next(model.parameters()).device
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", len(tokenizer)))  # type: ignore[operator, union-attr]
    most = max(1, _LOGITS_BYTES // (4 * window * vocabulary))
    found: list[np.ndarray] = []
    with frozen(model):
        for batch in _batches(windows, most):
            rows = torch.tensor([bos + ids[w.begin : w.end] for w in batch], device=device)
            found += _losses(model, rows, batch[0].end - batch[0].scored)
    return TextLoss(
        np.concatenate(found),
        np.repeat(np.arange(len(windows)), [len(part) for part in found]),
        np.array(ids[windows[0].scored :]),
        len(text.encode("utf-8")),
    )


def context_of(config: Any) -> int | None:
    """Most tokens that a model of this configuration was made for, or None where it does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] where the tokenizer puts it before a plain text, else []."""
    bos = tokenizer.bos_token_id
    return [int(bos)] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _batches(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Neighbours of one shape, up to `most` at a time."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == most or _shape(window) != _shape(batch[0])):
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _shape(window: Window) -> tuple[int, int]:
    return window.end - window.begin, window.end - window.scored


def _losses(model: nn.Module, rows: Tensor, count: int) -> list[np.ndarray]:
    """Losses of the last `count` tokens of each row; rows (B, W)."""
    logits = model(input_ids=rows, attention_mask=torch.ones_like(rows), logits_to_keep=count + 1).logits[:, :-1]
    logps = logits.float().log_softmax(-1).gather(2, rows[:, -count:, None]).squeeze(2)
    return list(-logps.double().cpu().numpy())


# ---- figures ----


def loss_figures(found: TextLoss, *, draws: int, seed: int) -> dict[str, Any]:
    """loss {value, low, high, n} in nats per token, its interval from drawing windows anew; perplexity; bits per byte
    of the text, which models of different tokenizers share."""
    loss = mean_with_interval(found.losses, found.windows, draws=draws, seed=seed)
    bits = float(found.losses.sum()) / math.log(2) / found.bytes
    return {"loss": loss, "perplexity": math.exp(loss["value"]), "bits_per_byte": bits}


def loss_difference(found: TextLoss, other: TextLoss, *, draws: int, seed: int) -> dict[str, Any] | None:
    """{value, low, high, n} of found minus other, paired token by token; None where they read different tokens."""
    if not np.array_equal(found.tokens, other.tokens):
        return None
    return mean_with_interval(found.losses - other.losses, found.windows, draws=draws, seed=seed)
