"""From a language world to what a run needs: a tokenizer, a base model trained from scratch, rows of comparisons."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from paretune.errors import InputError
from paretune.evaluation.sample import sample
from paretune.policy.loading import load_policy, load_tokenizer
from paretune.sandbox.labels import Labelling, prefer, select_conflict
from paretune.sandbox.world import Item, World

logger = logging.getLogger(__name__)

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
BASE_STEPS = 300
HELD_OUT = 5  # one group in so many is kept for evaluation

_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "attention_bias": True,
    # 1/sqrt(width): at the usual 0.02 so narrow a model's attention starts out uniform and stays so for long
    "initializer_range": 128**-0.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_START: dict[str, float] = {"residual": 0.1, "back": 5.0, "pass": 0.2, "match": 1.3, "copy": 0.5}
_TRAINING: dict[str, Any] = {"batch": 32, "rate": 2e-3, "warmup": 0.05, "floor": 0.05, "decay": 0.01, "clip": 1.0}


def made_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the world: one token per word, no BOS; decoding joins words by spaces."""
    vocabulary = {word: i for i, word in enumerate((PAD, EOS, UNKNOWN, *world.vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=_SHAPE["max_position_embeddings"],
    )


def make_items(world: World, n: int, *, seed: int, held_out: bool) -> list[Item]:
    """n items of one side of a fixed division by group: what is held out here is never trained on, whatever the seeds.

    Raises:
        InputError: the world has too few groups for the division.
    """
    rng = random.Random(f"{world.name} items {seed}")
    items: list[Item] = []
    for _ in range(100 * HELD_OUT * (n + 10)):
        if len(items) == n:
            return items
        item = world.make_item(rng)
        group = hashlib.sha256(item.group.encode()).digest()
        if (int.from_bytes(group[:4], "big") % HELD_OUT == 0) == held_out:
            items.append(item)
    raise InputError("too few groups to divide the items", where=f"world {world.name}", found=f"{len(items)} of {n}")


# ---- the base ----


def train_base(world: World, *, seed: int = 0, steps: int = BASE_STEPS, cache_dir: str | Path | None = None) -> Path:
    """Directory of a small Llama model and its tokenizer, trained from scratch on the world's demonstrations.

    Args:
        seed: of weights and demonstrations.
        steps: of 32 demonstrations each.
        cache_dir: holds one folder per digest of everything that decides the model (but the processor); None:
            `$PARETUNE_CACHE/sandbox`, or the same in `~/.cache/paretune`. What is there is not trained again.
    """
    root = Path(cache_dir) if cache_dir is not None else _cache_root() / "sandbox"
    settings = base_settings(world, seed, steps)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = root / f"{world.name}-{digest}"
    if (path / "config.json").exists():
        return path
    model, tokenizer = _trained(world, seed, steps)
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=root))
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "base.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        partial.rename(path)  # whole or not at all
    except OSError:  # another process was faster: the same model
        shutil.rmtree(partial)
    return path


def base_settings(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Everything that decides a base: its digest names the folder, and the folder's `base.json` shows it."""
    makers = {sys.modules[f.__module__] for f in (world.make_item, world.demonstrate)} | {sys.modules[__name__]}
    sources = {m.__name__: hashlib.sha256(inspect.getsource(m).encode()).hexdigest()[:16] for m in makers}
    return {
        "world": world.name,
        "vocabulary": list(world.vocabulary),
        "seed": seed,
        "steps": steps,
        "shape": _SHAPE,
        "start": _START,
        "training": _TRAINING,
        "sources": sources,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _cache_root() -> Path:
    return Path(os.environ.get("PARETUNE_CACHE", Path.home() / ".cache" / "paretune"))


def _trained(world: World, seed: int, steps: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = made_tokenizer(world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **_SHAPE,
        )
        model = LlamaForCausalLM(config)
        _start_copying(model)
    rng = random.Random(f"{world.name} demonstrations {seed}")
    ids = {word: i for i, word in enumerate((PAD, EOS, UNKNOWN, *world.vocabulary))}
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": _TRAINING["decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=_TRAINING["rate"],
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for step in range(steps):
        items = make_items(world, _TRAINING["batch"], seed=rng.getrandbits(48), held_out=False)
        pairs = [(item.prompt.split(), world.demonstrate(item, rng).split()) for item in items]
        inputs, targets = _batch([([ids[w] for w in p], [ids[w] for w in r] + [ids[EOS]]) for p, r in pairs])
        hidden = model.model(input_ids=inputs).last_hidden_state[:, :-1]
        scored = targets[:, 1:] >= 0
        loss = F.cross_entropy(model.lm_head(hidden[scored]), targets[:, 1:][scored])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _TRAINING["clip"])
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            logger.info("base of %s: step %d of %d, loss %.3f", world.name, step + 1, steps, loss.item())
    return model.eval(), tokenizer


@torch.no_grad()
def _start_copying(model: LlamaForCausalLM) -> None:
    """Draws weights with which the model can already look up what followed a word, which training then has to use.

    Copying from a prompt takes two heads in a row (an induction head, arXiv 2209.11895): one passes on the word before,
    the next looks for the place whose word before is this one. Gradient descent finds the pair after a long plateau,
    which a minute on two cores does not cross; so the search begins behind it. What to say, and when to copy, stays to
    be learned.
    """
    width, heads = _SHAPE["hidden_size"], _SHAPE["num_attention_heads"]
    size = width // heads
    first, second = (model.model.layers[i].self_attn for i in (0, 1))
    for layer in model.model.layers:  # small outputs at first, so that the words themselves are not drowned out
        layer.self_attn.o_proj.weight *= _START["residual"]
        layer.mlp.down_proj.weight *= _START["residual"]
    # Head 0 of the first layer: a query that meets, by rotation alone, the key one place back.
    turns = model.model.rotary_emb.inv_freq[: size // 8]  # the fast ones tell places apart
    query, key = torch.zeros(size), torch.zeros(size)
    query[: len(turns)] = _START["back"]
    key[: len(turns)] = _START["back"] * turns.cos()
    key[size // 2 : size // 2 + len(turns)] = _START["back"] * turns.sin()
    first.q_proj.bias[:size], first.k_proj.bias[:size] = query, key
    first.q_proj.weight[:size] *= 0.1
    first.k_proj.weight[:size] *= 0.1
    # It writes what it read into directions where no word's own reading is.
    basis = torch.linalg.qr(torch.randn(width, 2 * size))[0].T
    reading, writing = basis[:size], basis[size:]
    first.v_proj.weight[:size] = _START["pass"] * reading
    first.o_proj.weight[:, :size] = writing.T
    # Two heads of the second layer compare their own word with those, and pass on the word that they find.
    for head in (0, 1):
        rows = slice(head * size, (head + 1) * size)
        second.q_proj.weight[rows] = _START["match"] * reading
        second.k_proj.weight[rows] = _START["match"] * writing
        second.o_proj.weight[:, rows] = _START["copy"] * second.v_proj.weight[rows].T


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to the floor."""
    warm = min(1.0, (step + 1) / max(1.0, _TRAINING["warmup"] * steps))
    floor = _TRAINING["floor"]
    return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batch(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Token ids and targets, (N, T) each, right padded; targets are -1 at prompts and padding."""
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    inputs = torch.zeros(len(pairs), longest, dtype=torch.long)
    targets = torch.full_like(inputs, -1)
    for row, (prompt, response) in enumerate(pairs):
        whole = torch.tensor(prompt + response)
        inputs[row, : len(whole)] = whole
        targets[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    return inputs, targets


# ---- comparisons ----


def sample_rows(
    world: World,
    base_path: str | Path,
    n_prompts: int,
    pairs_per_prompt: int,
    labelling: Labelling,
    seed: int,
    *,
    held_out: bool = False,
) -> list[dict[str, Any]]:
    """Rows of comparisons: two responses of the base at temperature 1, labelled from their exact rewards.

    Responses that the base did not end in time are left out, and so are repeats of a response or a pair: a
    prompt where the base hardly varies gives fewer pairs. A labelling with a share of conflicts then picks among them.

    Args:
        n_prompts: prompts asked; rows are at most n_prompts · pairs_per_prompt.
        held_out: take prompts from the side that is never trained on.

    Returns:
        Rows as `read_comparisons` takes them: prompt, response_a, response_b (with their leading space), preferences,
        and group, id.
    """
    items = make_items(world, n_prompts, seed=seed, held_out=held_out)
    model, tokenizer = load_policy(str(base_path), full=True), load_tokenizer(str(base_path))
    drawn = sample(
        model,
        tokenizer,
        [item.prompt for item in items],
        2 * pairs_per_prompt + 2,
        max_new_tokens=world.max_response + 1,
        seed=seed,
    )
    rows: list[dict[str, Any]] = []
    rewards: list[list[list[float]]] = []
    seen: set[tuple[str, ...]] = set()
    for i, item in enumerate(items):
        ended = [text for text, cut in zip(drawn.texts[i], drawn.cut[i].tolist(), strict=True) if text and not cut]
        texts = list(dict.fromkeys(ended))
        for k in range(min(pairs_per_prompt, len(texts) // 2)):
            a, b = texts[2 * k], texts[2 * k + 1]
            if (item.prompt, *sorted((a, b))) in seen:  # small worlds ask the same thing twice
                continue
            seen.add((item.prompt, *sorted((a, b))))
            rewards.append([_rewards(world, item, text) for text in (a, b)])
            rows.append({"prompt": item.prompt, "response_a": f" {a}", "response_b": f" {b}", "group": item.group})
    if not rows:
        raise InputError("the base gave no two different responses to any prompt", where=f"world {world.name}")
    rewards_a, rewards_b = np.array(rewards)[:, 0], np.array(rewards)[:, 1]
    rng = np.random.default_rng([seed, 1])
    if labelling.conflict is not None:
        chosen = select_conflict(rewards_a, rewards_b, labelling.conflict, rng)
        rows, rewards_a, rewards_b = [rows[i] for i in chosen], rewards_a[chosen], rewards_b[chosen]
    labels = prefer(rewards_a, rewards_b, labelling, rng)
    for number, (row, of_row) in enumerate(zip(rows, labels, strict=True)):
        opinions = zip(world.objectives, of_row.tolist(), strict=True)
        row["preferences"] = {name: None if math.isnan(value) else value for name, value in opinions}
        row["id"] = f"{world.name}-{seed}-{number}"
    return rows


def _rewards(world: World, item: Item, text: str) -> list[float]:
    scores = world.score(item, text)
    return [scores[name] for name in world.objectives]
