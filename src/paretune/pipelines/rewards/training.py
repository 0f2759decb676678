"""Trains reward models with `transformers.Trainer`: pointwise, pairwise, listwise, on sequences or tokens; ridge heads.

Suffixes: G examples of a batch, R responses, K responses of the longest example, M objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from paretune.errors import InputError
from paretune.pipelines.rewards.data import Examples, split_places
from paretune.policy.reference import frozen
from paretune.preferences.reward_models.losses import (
    all_pairs,
    label_weights,
    listwise,
    mean_by_objective,
    pairwise,
    pointwise,
)
from paretune.preferences.reward_models.models import TOKEN_LEVELS, final_head, response_rewards
from paretune.preferences.reward_models.ridge import Ridge, fit_ridge
from paretune.preferences.reward_models.texts import Encoded, collate, encode
from paretune.training.checkpoints import WholeTrainer
from paretune.training.interruption import RunArguments

# kind -> losses (G, M) from rewards (G, K, M), the batch and its run's arguments
KINDS: dict[str, Callable[[Tensor, dict[str, Tensor], RewardConfig], Tensor]] = {
    "pairwise": lambda r, batch, args: (
        all_pairs(r, batch["scores"], args.margin_scale, args.centring)
        if args.all_pairs
        else pairwise(r[:, 0], r[:, 1], batch["preferences"], batch.get("margins"), args.centring)
    ),
    "pointwise": lambda r, batch, args: pointwise(r, batch["scores"]).sum(1),
    "listwise": lambda r, batch, args: listwise(r, batch["scores"]),
}
RIDGE = "ridge"
_CHOOSE = 0.2  # share of the examples that the strength of a ridge head is chosen on


@dataclass
class RewardConfig(RunArguments):
    """Every field of `TrainingArguments` works, and these."""

    output_dir: str = field(default="paretune-reward", metadata={"help": "Where the run writes all it leaves."})
    kind: str = field(
        default="pairwise",
        metadata={
            "help": "pairwise (Bradley-Terry, from preferences), pointwise (squared error), listwise (Plackett-Luce) "
            "or ridge (heads in closed form on a frozen model), the latter three from scores."
        },
    )
    token_level: str | None = field(
        default=None, metadata={"help": "sum or mean: a reward on every token of the response, added up or averaged."}
    )
    all_pairs: bool = field(
        default=False,
        metadata={"help": "pairwise, from scores: a prompt with all pairs of its responses is one element of a batch."},
    )
    centring: float = field(
        default=0.0, metadata={"help": "pairwise: weight of (r_a + r_b)^2, which puts the rewards' zero in the middle."}
    )
    margin_scale: float = field(
        default=0.0,
        metadata={"help": "pairwise, of rated rows: the better one should lead by this times the gap in ratings."},
    )
    calibrate: bool = field(
        default=False, metadata={"help": "Divide each head by the temperature that fits the held-out pairs best."}
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate; LoRA usually wants 10x more."})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Prompts (of pairs: pairs) per device and micro-batch."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: a share of the run below 1, else steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged lines."})
    max_length: int | None = field(
        default=2048, metadata={"help": "Tokens of prompt and response; prompts are cut from the left to fit."}
    )
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Share of the data held out for evaluation; no group or prompt is cut."}
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False  # the rows are what the collator takes
        if self.kind not in (*KINDS, RIDGE):
            raise InputError("bad kind", expected=f"one of {', '.join([*KINDS, RIDGE])}", found=self.kind)
        if self.token_level not in (None, *TOKEN_LEVELS):
            raise InputError(
                "bad token_level", expected=f"{' or '.join(TOKEN_LEVELS)}, or null", found=self.token_level
            )
        if self.token_level and self.kind == RIDGE:
            raise InputError("ridge heads are on whole sequences", where="token_level", fix="Leave token_level out.")
        for name in ("centring", "margin_scale"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"bad {name}", expected="a number >= 0", found=value)
            if value and self.kind != "pairwise":
                raise InputError(f"{name} means nothing to kind: {self.kind}", fix="Leave it out, or train pairwise.")
        if self.all_pairs and self.kind != "pairwise":
            raise InputError(f"all_pairs means nothing to kind: {self.kind}", fix="Leave it out, or train pairwise.")
        if self.max_length is not None and self.max_length < 2:
            raise InputError("bad max_length", expected="at least 2 tokens, or null", found=self.max_length)
        super().__post_init__()


class RewardRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples ready for batches: their encoded responses, and labels as arrays.

    A response that does not fit is left out of a list; a pair loses its label with it. `dropped` counts them.
    """

    def __init__(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        form: str,
        max_length: int | None,
        *,
        margin_scale: float = 0.0,
        standard: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        texts = [(p, r) for p, many in zip(examples.prompts, examples.responses, strict=True) for r in many]
        encoded = iter(encode(tokenizer, form, [p for p, _ in texts], [r for _, r in texts], max_length))
        center, scale = standard if standard is not None else (0.0, 1.0)
        self.rows: list[dict[str, Any]] = []
        self.places: list[int] = []  # of the examples that are left
        self.dropped = 0
        for n, many in enumerate(examples.responses):
            read = [next(encoded) for _ in many]
            kept = [k for k, one in enumerate(read) if one is not None]
            self.dropped += len(read) - len(kept)
            if not kept or (examples.preferences is not None and len(kept) < len(read)):
                continue
            scores = examples.scores[n, kept]
            standardized = (scores - center) / scale
            row: dict[str, Any] = {"encoded": [read[k] for k in kept], "scores": standardized, "raw": scores}
            if examples.preferences is not None:
                row["preferences"] = examples.preferences[n]
                if margin_scale:
                    row["margins"] = margin_scale * np.abs(scores[0] - scores[1])
            self.rows.append(row)
            self.places.append(n)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]

    def labelled(self, kind: str) -> Tensor:
        """(N, M): how much of each objective an example labels, as `label_weights` takes it."""
        if self.rows and "preferences" in self.rows[0]:
            return torch.tensor(np.array([~np.isnan(row["preferences"]) for row in self.rows]))
        scored = torch.tensor(np.array([(~np.isnan(row["scores"])).sum(0) for row in self.rows]))
        return scored if kind == "pointwise" else scored > 1


def collate_examples(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """A batch of `texts.collate` with `members` (G, K): which of the R sequences are each example's, -1 for none; and
    `scores` (G, K, M), `preferences` and `margins` (G, M) where rows have them, float32."""
    sequences: list[Encoded] = [one for row in rows for one in row["encoded"]]
    widest = max(len(row["encoded"]) for row in rows)
    members = torch.full((len(rows), widest), -1)
    scores = torch.full((len(rows), widest, rows[0]["scores"].shape[1]), torch.nan)
    taken = 0
    for i, row in enumerate(rows):
        count = len(row["encoded"])
        members[i, :count] = torch.arange(taken, taken + count)
        scores[i, :count] = torch.tensor(row["scores"])
        taken += count
    batch = {**collate(sequences, pad), "members": members, "scores": scores}
    for name in ("preferences", "margins"):
        if name in rows[0]:
            batch[name] = torch.tensor(np.array([row[name] for row in rows]), dtype=torch.float32)
    return batch


def batch_loss(args: RewardConfig, rewards: Tensor, batch: dict[str, Tensor], weights: Tensor) -> Tensor:
    """The loss of a batch from its rewards (R, M)."""
    grouped = rewards[batch["members"].clamp(min=0)]  # of no response: any reward, without a score it counts nowhere
    return mean_by_objective(KINDS[args.kind](grouped, batch, args), weights.to(rewards.device))


class RewardTrainer(WholeTrainer):
    """A trainer whose loss is that of the kind."""

    loss_is_scaled_for_ga = False  # a mean over the micro-batch; Trainer divides by the number of these

    def __init__(self, *, weights: Tensor, **given: Any):
        super().__init__(**given)
        self.label_weights = weights

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert isinstance(self.args, RewardConfig)
        rewards = response_rewards(model, inputs, self.args.token_level)
        loss = batch_loss(self.args, rewards, inputs, self.label_weights)
        return (loss, {"rewards": rewards}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


def weights_of(rows: RewardRows, kind: str) -> Tensor:
    """(M,) weights of the objectives' losses."""
    return label_weights(rows.labelled(kind))


# ---- outside the trainer ----


def all_outputs(
    model: nn.Module, rows: RewardRows, pad: int, token_level: str | None, *, batch_size: int
) -> list[np.ndarray]:
    """Per example (K, M) float64 rewards (or, of a model without its head, features), without gradients."""
    device = next(model.parameters()).device
    every = [(i, k, one) for i, row in enumerate(rows.rows) for k, one in enumerate(row["encoded"])]
    every.sort(key=lambda entry: -len(entry[2].ids))
    found: list[list[Any]] = [[None] * len(row["encoded"]) for row in rows.rows]
    with frozen(model):
        for start in range(0, len(every), batch_size):
            part = every[start : start + batch_size]
            batch = {key: value.to(device) for key, value in collate([one for _, _, one in part], pad).items()}
            outputs = response_rewards(model, batch, token_level).double().cpu().numpy()
            for (i, k, _), output in zip(part, outputs, strict=True):
                found[i][k] = output
    return [np.stack(entry) for entry in found]


def set_ridge_heads(model: nn.Module, rows: RewardRows, examples: Examples, pad: int, *, batch_size: int) -> Ridge:
    """Fits heads in closed form on what the model's own last layer reads, and puts them there; nothing else changes."""
    parent, name, layer = final_head(model)
    setattr(parent, name, nn.Identity())
    try:
        features = all_outputs(model, rows, pad, None, batch_size=batch_size)
    finally:
        setattr(parent, name, layer)
    _, held = split_places([examples.groups[n] for n in rows.places], _CHOOSE, seed=1)
    on = np.repeat(np.isin(np.arange(len(features)), held), [len(entry) for entry in features])
    scores = np.concatenate([row["scores"] for row in rows.rows])
    x = torch.tensor(np.concatenate(features))
    ridge = fit_ridge(x, torch.tensor(scores), torch.tensor(on))
    with torch.no_grad():
        layer.weight.copy_(ridge.weights)
        if layer.bias is not None:
            layer.bias.zero_()
    return ridge
