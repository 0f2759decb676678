"""Responses of a model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretune.comparisons.control import prompt_ids
from paretune.comparisons.rows import Text
from paretune.errors import InputError
from paretune.pipelines.sampling import Drawn, Progress, PromptRow, ResponseFile, SamplingSettings, tidy


def sample_here(
    rows: Sequence[PromptRow], settings: SamplingSettings, file: ResponseFile, *, batch_size: int
) -> dict[str, int]:
    """Draws all responses that are missing with a local model; returns counts of what was left out.

    Prompts of like length share a batch. Which ones is a function of all prompts, and a batch that was not finished is
    drawn again whole: the last bits of a forward pass depend on the batch, and one bit can turn a draw.

    Raises:
        InputError: a model that cannot be loaded, no chat template where prompts are messages, a prompt that is too
            long for the model.
    """
    import torch

    from paretune.evaluation.sample import sample
    from paretune.policy.loading import load_scored, load_tokenizer

    tokenizer = load_tokenizer(settings.model)
    encoded = [encode_prompt(tokenizer, row.prompt, settings) for row in rows]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_scored(settings.model).to(device)
    check_lengths(model, encoded, settings)
    ends = ends_of(model)
    final = {tokenizer.eos_token_id, *ends}
    counts: dict[str, int] = {}
    order = sorted(range(len(rows)), key=lambda i: (len(encoded[i]), rows[i].key))
    per_batch = max(1, batch_size // settings.n)
    progress = Progress(len(rows), file)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        if all(rows[i].key in file.finished for i in chosen):
            continue
        drawn = sample(
            model,
            tokenizer,
            [encoded[i] for i in chosen],
            settings.n,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_tokens,
            seed=[rows[i].seed(settings.seed) for i in chosen],
            ends=ends,
            batch_size=len(chosen) * settings.n,
        )
        finished = []
        for i, tokens, cut in zip(chosen, drawn.tokens, drawn.cut.tolist(), strict=True):
            before = encoded[i] if isinstance(rows[i].prompt, str) else []
            texts = [continuation(tokenizer, before, ids[:-1] if ids[-1] in final else ids) for ids in tokens]
            responses = [Drawn(text, one) for text, one in zip(texts, cut, strict=True)]
            if rows[i].key not in file.finished:
                finished.append((rows[i], tidy(responses, settings, counts)))
        file.add(finished)
        progress.at()
    return counts


def continuation(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The tokens as text that goes on after `before`.

    Tokenizers of SentencePiece and of whole words drop the space before a text's first word. Put after a prompt that
    ends in a word, such a response would be other tokens than were drawn.
    """
    head, whole = (str(tokenizer.decode(some, skip_special_tokens=True)) for some in (before, [*before, *ids]))
    return whole.removeprefix(head) if whole.startswith(head) else str(tokenizer.decode(ids, skip_special_tokens=True))


def ends_of(model: Any) -> list[int]:
    """The tokens that end a response by the model's generation settings."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def encode_prompt(tokenizer: Any, prompt: Text, settings: SamplingSettings) -> list[int]:
    """The tokens that a response follows; messages go through the chat template."""
    if isinstance(prompt, str):
        return prompt_ids(tokenizer, prompt)
    try:
        tokenizer.get_chat_template()
        return prompt_ids(tokenizer, prompt, **(settings.template_options or {}))
    except Exception as error:  # templates raise what Jinja raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "Use the instruct model, or plain prompts."
        raise InputError("the chat template does not apply", where=settings.model, found=first, fix=fix) from error


def check_lengths(model: Any, encoded: Sequence[Sequence[int]], settings: SamplingSettings) -> None:
    """Raises InputError where a prompt and max_tokens do not fit the model's context."""
    most = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, encoded))
    if isinstance(most, int) and longest + settings.max_tokens > most:
        raise InputError(
            "the model's context is too short",
            where=settings.model,
            expected=f"at most {most} tokens of prompt and response",
            found=f"a prompt of {longest} and max_tokens {settings.max_tokens}",
            fix=f"Set max_tokens to at most {most - longest}." if most > longest else "Leave the longest prompts out.",
        )
