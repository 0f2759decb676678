"""A small judge of our own: trained on verdicts about its own creatures, asked through the library's local judge.

One model learns both protocols (with and without a reference) and three rubrics. What it is trained on are texts of the
study's language with exact verdicts; the creatures, and so the facts, are others than those that it judges later.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from paretune.pipelines.judge_bench import read_bench
from paretune.preferences.judges.protocols import load_protocol, question
from paretune.preferences.specs import parse_source
from paretune.preferences.verdicts import hear
from paretune.training.sft import SFTConfig, run_supervised, supervised_trainer
from studies.self_improvement.world import (
    COUNT,
    RUBRICS,
    SILENT,
    Creature,
    make_tokenizer,
    other_than,
    refer,
    score,
    write,
)

HERE = Path(__file__).resolve().parent
PROTOCOLS = {"free": str(HERE / "free.txt"), "guided": str(HERE / "guided.txt")}
WIDTH, HEADS = 64, 4
TEXT = COUNT + 9  # words from a place in one text to the same place in the next: a fence has four, and there is a name
CENTRE = 7  # words from the end back to the middle of the second answer
GUIDED_SHARE = 2 / 3  # of the training rows: reading a reference takes longer to learn
QUIET: dict[str, Any] = {
    "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "dataset_num_proc": 1,
    "dataloader_pin_memory": False, "logging_steps": 50, "gradient_accumulation_steps": 1,
}  # fmt: skip


def small_model(seed: int) -> LlamaForCausalLM:
    """A model that knows nothing, of 0.1 million parameters."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=128,
            tie_word_embeddings=True, attention_bias=True, initializer_range=WIDTH**-0.5,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )  # fmt: skip
        return LlamaForCausalLM(config)


def write_model(folder: Path, model: LlamaForCausalLM) -> str:
    """The model and the study's tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def start_looking(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Heads begin by looking at places where something can be compared; what to make of it is left to training.

    Two heads of the first layer look one and two texts back, at the same place of the other answer and the reference.
    Two heads of the second look at the two answers from the end. Gradient descent finds such heads too, after a long
    plateau that a minute on one core does not cross: from verdicts alone there is one bit to learn from in 57 words.
    """
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= 0.5
        layer.mlp.down_proj.weight *= 0.5
    sharp, wide = (5.0, range(WIDTH // HEADS // 4)), (3.2, range(1, 3))
    for number, head, distance, (strength, turns) in (
        (0, 0, TEXT, sharp),
        (0, 1, 2 * TEXT, sharp),
        (1, 0, CENTRE, wide),
        (1, 1, CENTRE + TEXT, wide),
    ):
        _look_back(model, number, head, distance, strength, turns)
    return model


def _look_back(model: Any, number: int, head: int, distance: int, strength: float, turns: Sequence[int]) -> None:
    """Makes a head attend, by rotation alone, to what stands `distance` words back."""
    size = WIDTH // HEADS
    frequency = model.model.rotary_emb.inv_freq
    query, key = torch.zeros(size), torch.zeros(size)
    for i in turns:
        angle = distance * frequency[i]
        query[i], key[i], key[size // 2 + i] = strength, strength * angle.cos(), strength * angle.sin()
    attention, rows = model.model.layers[number].self_attn, slice(head * size, (head + 1) * size)
    attention.q_proj.bias[rows], attention.k_proj.bias[rows] = query, key
    attention.q_proj.weight[rows] *= 0.1
    attention.k_proj.weight[rows] *= 0.1


def answer(creature: Creature, rng: random.Random) -> str:
    """An answer of any quality and length, in plain words or partly in others."""
    error, says = rng.uniform(0.1, 0.7), rng.uniform(0.4, 1.0)
    while True:
        values = {
            k: other_than(true, rng) if rng.random() < error else true
            for k, true in enumerate(creature.facts)
            if rng.random() < says
        }
        if values:
            return write(values, rng, rng.choice((0.0, 0.5)))


def decided(creatures: Sequence[Creature], rubric: str, rng: random.Random) -> tuple[Creature, str, str, bool]:
    """A creature, two answers of which one is better by the rubric, and whether that is the first."""
    while True:
        creature = rng.choice(creatures)
        a, b = answer(creature, rng), answer(creature, rng)
        difference = score(creature, a)[rubric] - score(creature, b)[rubric]
        if abs(difference) > 1e-9:
            return creature, a, b, difference > 0


def training_rows(creatures: Sequence[Creature], count: int, seed: int) -> list[dict[str, str]]:
    """Prompts as the local judge renders them, and the right verdicts."""
    rng = random.Random(f"verdicts {seed}")
    protocols = {name: load_protocol(path, "study") for name, path in PROTOCOLS.items()}
    rows = []
    for _ in range(count):
        rubric = rng.choice(list(RUBRICS))
        creature, a, b, first = decided(creatures, rubric, rng)
        protocol = protocols["guided" if rng.random() < GUIDED_SHARE else "free"]
        reference = refer(creature, rng, paraphrased=rng.choice((0.0, 0.5)))
        shown = reference if protocol.needs_reference else None
        asked = question(protocol, creature.prompt, a, b, reference=shown, rubric=RUBRICS[rubric])
        reply = protocol.answers[0 if first else 1]
        rows.append({"prompt": f"{asked.system}\n\n{asked.user}\n\n", "response": reply})
    return rows


def train_judge(folder: Path, creatures: Sequence[Creature], seed: int, options: Mapping[str, Any]) -> str:
    """A judge's directory."""
    base = write_model(folder / "untrained", start_looking(small_model(seed)))
    rows = training_rows(creatures, options["rows"], seed)
    args = SFTConfig(
        output_dir=str(folder / "judge"), seed=seed, learning_rate=options["rate"], weight_decay=0.01,
        per_device_train_batch_size=options["batch"], num_train_epochs=options["epochs"], warmup_steps=50,
        adam_beta2=0.95, **QUIET,
    )  # fmt: skip
    trainer, record = supervised_trainer(base, args, rows)
    run_supervised(trainer, record)
    return str(folder / "judge")


def sources(judge: str, base: str) -> dict[str, dict[str, Any]]:
    """What labels pairs, as `paretune label` takes it: the judge with and without references, and likeness."""
    found: dict[str, dict[str, Any]] = {
        f"{protocol} {rubric}": {
            "judge": judge, "protocol": path, "rubric": word, "batch_size": 128, "dtype": "float32",
        }
        for protocol, path in PROTOCOLS.items()
        for rubric, word in RUBRICS.items()
    }  # fmt: skip
    found["rouge"] = {"rule": "rouge"}
    found["embeddings"] = {"function": Likeness(base)}
    return found


class Likeness:
    """Greedy matching of word embeddings (F of mean best cosines, as in BERTScore), with a policy as the encoder."""

    def __init__(self, model: str):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        table = AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight.detach()
        self.table = F.normalize(table.double(), dim=-1)

    def __call__(self, prompts: Any, completions: Sequence[str], reference: Any = None, **columns: Any) -> list[float]:
        return [self.of(a, b) for a, b in zip(completions, reference, strict=True)]

    def of(self, one: str, other: str) -> float:
        a, b = (self.table[self.tokenizer(text)["input_ids"]] for text in (one, other))
        cosines = a @ b.T
        precision, recall = float(cosines.amax(1).mean()), float(cosines.amax(0).mean())
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def bench_rows(creatures: Sequence[Creature], rubric: str, count: int, seed: int, **quality: float) -> list[Any]:
    """Pairs about creatures, in the layout of `judge-bench`; references are of the given quality."""
    rng = random.Random(f"bench {rubric} {seed}")
    rows = []
    for _ in range(count):
        creature, a, b, first = decided(creatures, rubric, rng)
        reference = refer(creature, random.Random(f"{creature.name} {seed}"), **quality)
        row = {"input": creature.prompt, "output_1": a, "output_2": b, "label": 1 if first else 2}
        rows.append({**row, "reference": reference})
    return rows


def accuracies(rows: Sequence[Any], asked: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Per source its accuracy, averaged over both orders (no opinion is half right); how often a judge's orders agree.

    `judge-bench` says the same, with a bootstrap over items, which is no unit here and would take most of the time.
    """
    labellers = [parse_source(name, dict(spec)) for name, spec in asked.items()]
    bench = read_bench(list(rows))
    heard = hear(labellers, bench.candidates, None)
    found: dict[str, dict[str, float]] = {}
    for name in asked:
        told = heard[name]
        if told.answers:  # P(first is better) of both orders
            orders = np.array([(own[0, 1], 1 - own[1, 0]) for _, own in sorted(told.answers.items())]) - 0.5
        else:
            orders = np.array([[v.scores[0] - v.scores[1]] for _, v in sorted(told.verdicts.items())])
        right = 0.5 + 0.5 * np.sign(orders) * np.sign(bench.labels - 0.5)[:, None]
        found[name] = {"accuracy": float(right.mean()), "orders agree": float((right[:, 0] == right[:, -1]).mean())}
    return found


def form(rubric: str) -> dict[str, Any]:
    """What can be known without facts: how much is said. More is better, but for care."""
    sign = -1 if rubric == "careful" else 1

    def count(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float]:
        return [sign * sum(word != SILENT for word in text.split()) for text in completions]

    return {"function": count}
