"""A text's loss: against one plain pass, and against every token's own window computed apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.evaluation.text_loss import loss_difference, loss_figures, read_text, split, text_loss
from tests.models_made import make_model
from tests.tokenizers_made import SENTENCES, byte_bpe

TEXT = " ".join(SENTENCES[:7])


@pytest.fixture(scope="module", params=[False, True], ids=["no BOS", "BOS"])
def pair(request: pytest.FixtureRequest) -> tuple:
    tokenizer = byte_bpe(add_bos=request.param)
    return make_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256), tokenizer


def _logps(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Of every token but the first, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[1:, None]).squeeze(1)


def test_a_text_that_fits_is_scored_in_one_pass(pair: tuple) -> None:
    model, tokenizer = pair
    text = TEXT[:120]
    found = text_loss(model, tokenizer, text, window=128)
    ids = tokenizer(text)["input_ids"]  # with BOS where there is one
    assert len(found.losses) == len(ids) - 1 and set(found.windows) == {0}
    np.testing.assert_allclose(found.losses, -_logps(model, ids).numpy(), rtol=1e-4)
    figures = loss_figures(found, draws=50, seed=0)
    mean = float(found.losses.mean())
    assert figures["loss"]["value"] == pytest.approx(mean) and figures["loss"]["low"] is None  # one window
    assert figures["perplexity"] == pytest.approx(math.exp(mean))
    assert figures["bits_per_byte"] == pytest.approx(float(found.losses.sum()) / math.log(2) / len(text.encode()))


@pytest.mark.parametrize("size", [9, 32])
def test_a_long_text_is_scored_once_with_half_a_window_before_it(pair: tuple, size: int) -> None:
    model, tokenizer = pair
    found = text_loss(model, tokenizer, TEXT, window=size)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    bos = tokenizer("a")["input_ids"][:1] if tokenizer.bos_token_id is not None else []
    assert found.tokens.tolist() == ids[0 if bos else 1 :]
    length, half = size - len(bos), (size - len(bos)) // 2
    expected = []
    for place in range(0 if bos else 1, len(ids)):
        # the window of a token, found token by token: the first, or the one whose new half holds it
        begin = 0 if place < length else length - half + (place - length) // (length - half) * (length - half)
        expected.append(-float(_logps(model, bos + ids[begin : place + 1])[-1]))
    np.testing.assert_allclose(found.losses, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("length", [3, 10, 11, 15, 16, 40])
@pytest.mark.parametrize("size", [4, 5, 10])
def test_windows_cover_a_text_once(length: int, size: int) -> None:
    windows = list(split(length, size, first=1))
    scored = [place for w in windows for place in range(w.scored, w.end)]
    assert scored == list(range(1, length))
    assert all(w.end - w.begin <= size for w in windows)
    assert all(w.scored - w.begin >= size // 2 for w in windows[1:])


def test_differences_are_paired(pair: tuple) -> None:
    model, tokenizer = pair
    other = make_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256, seed=1)
    a, b = (text_loss(m, tokenizer, TEXT, window=32) for m in (model, other))
    change = loss_difference(a, b, draws=300, seed=0)
    assert change is not None
    assert change["value"] == pytest.approx(float(a.losses.mean() - b.losses.mean()))
    assert change["low"] < change["value"] < change["high"]
    none = loss_difference(a, a, draws=50, seed=0)
    assert none == {"value": 0.0, "low": 0.0, "high": 0.0, "n": len(a.losses)}
    assert loss_difference(a, text_loss(model, tokenizer, TEXT[:-9], window=32), draws=50, seed=0) is None


def test_bad_input(pair: tuple, tmp_path: Path) -> None:
    model, tokenizer = pair
    for window in (3, 257):
        with pytest.raises(InputError, match="at most 256"):
            text_loss(model, tokenizer, TEXT, window=window)
    with pytest.raises(InputError, match="no token to score"):
        text_loss(model, byte_bpe(), "a", window=16)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="an empty text"):
        read_text(str(tmp_path / "empty.txt"))
    with pytest.raises(InputError, match="none.txt: cannot read the text"):
        read_text(str(tmp_path / "none.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="invalid UTF-8"):
        read_text(str(tmp_path / "latin.txt"))
