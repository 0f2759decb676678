"""The same measurement in a language world: rows' gradients of a small model, from the library's single pass.

`single_pass` mixes the rows' weight gradients with slopes (m, R); with the identity for slopes it gives each row's own,
and with them every figure of `measure` is exact for the data set at hand.

R rows, P parameters, 2 objectives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from paretune import load_comparisons
from paretune.combine import raco
from paretune.comparisons.batches import collate
from paretune.comparisons.tokens import pad_id, tokenize_comparisons
from paretune.gradients import GradientStack, RowLayers, single_pass, trainable_parameters
from paretune.losses import batch_losses
from paretune.objectives import Objective
from paretune.policy.loading import load_policy, load_tokenizer
from paretune.policy.logprobs import Scorer, prepare_scorer
from paretune.policy.reference import Reference, choose_reference
from paretune.sandbox.labels import PRESETS
from paretune.sandbox.language import sample_rows, train_base
from paretune.sandbox.safety import SAFETY
from paretune.training.step import log_probs, outputs_and_slopes
from studies.noisy_gram.measure import averaged, measured

BETA, KAPPA, RATE, BATCH = 0.1, 6.0, 1e-4, 32  # the demo's


class Rows:
    """A policy of the safety world, its reference, and tokenized comparisons with both objectives' labels."""

    def __init__(self, rows: int, preset: str, seed: int):
        base = train_base(SAFETY, seed=0)
        labelling = PRESETS[preset].with_kappa(KAPPA)
        made = sample_rows(SAFETY, base, rows // 2, 3, labelling, seed)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(str(base))
        given = load_comparisons(made)
        self.table, _ = tokenize_comparisons(given, self.tokenizer, SAFETY.objectives, max_length=128)
        self.count = min(rows, len(self.table))
        self.objectives = [Objective(name, weight=0.5) for name in SAFETY.objectives]
        self.policy: nn.Module = load_policy(str(base), full=True)
        self.scorer: Scorer = prepare_scorer(self.policy)
        self.reference: Reference = choose_reference(self.policy, None, self.scorer, needed=True)[0]

    def scored(self, index: list[int]) -> Any:
        """Outputs (R,) with their graph and slopes (2, R) of those rows, per row: no 1 / R in them."""
        batch = collate([self.table[i] for i in index], layout=self.scorer.layout, pad_id=pad_id(self.tokenizer))
        scores, logps = log_probs(self.policy, self.scorer, self.reference, batch)
        losses = batch_losses(self.objectives, BETA, logps, batch["preferences"])
        ((outputs, slopes),) = outputs_and_slopes(scores, losses)
        return outputs, slopes


def row_gradients(rows: Rows, at_once: int = 16) -> tuple[Tensor, Tensor]:
    """J (R, P) float32 and slopes (2, R) of all the rows at the policy as it is."""
    layers = RowLayers(rows.policy)
    gradients, slopes = [], []
    for start in range(0, rows.count, at_once):
        outputs, own = rows.scored(list(range(start, min(start + at_once, rows.count))))
        stack = GradientStack(trainable_parameters(rows.policy), len(outputs))
        single_pass(outputs, torch.eye(len(outputs), dtype=own.dtype), stack, layers)
        gradients.append(torch.cat([stack.buffer(name) for name in stack.parameters], 1))
        slopes.append(own)
    layers.restore()
    return torch.cat(gradients), torch.cat(slopes, 1)


def train(rows: Rows, steps: int, seed: int) -> None:
    """RACO at equal weights with Adam, as the trainer steps."""
    layers, parameters = RowLayers(rows.policy), trainable_parameters(rows.policy)
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for _ in range(steps):
        outputs, slopes = rows.scored(torch.randint(rows.count, (BATCH,), generator=generator).tolist())
        stack = GradientStack(parameters, 2)
        single_pass(outputs, slopes / BATCH, stack, layers)
        stack.write_grad(raco(stack.gram(), weights).coefficients)
        optimizer.step()
    layers.restore()


def measure_language(rows: int, steps: int, sizes: list[int], count: int, seeds: list[int]) -> list[dict[str, Any]]:
    """The figures of `measure` before training and after `steps`, mean over seeds (of prompts and responses)."""
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    facts = {}
    for preset in ("clean", "noisy-one"):
        for seed in seeds:
            world = Rows(rows, preset, seed)
            for at in (0, steps):
                if at:
                    train(world, at, seed)
                gradients, slopes = row_gradients(world)
                # every figure is of products of gradients: an orthonormal basis of the rows' span keeps them all
                small = _coordinates(gradients)
                facts[preset] = {"rows": world.count, "parameters": gradients.shape[1]}
                for n in sizes:
                    one = measured(small, slopes.double(), weights, n, count, seed)
                    found.setdefault((preset, at, n), []).append(one)
    return [
        {"condition": preset, "step": at, "size": n, **facts[preset], **averaged(column)}
        for (preset, at, n), column in found.items()
    ]


def _coordinates(gradients: Tensor) -> Tensor:
    """(R, R) float64 rows with the products of the (R, P) given ones."""
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for part in gradients.split(1 << 16, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0.0).sqrt()
