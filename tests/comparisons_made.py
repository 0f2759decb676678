"""Made tokenized comparisons: uneven lengths, responses that begin alike, prompts that end apart, missing labels."""

from __future__ import annotations

from typing import Any

import torch

NAN = float("nan")


def made_comparisons(
    n: int, objectives: int, *, vocabulary: int = 97, seed: int = 0, missing: float = 0.3
) -> list[dict[str, Any]]:
    """n rows as `tokenize_comparisons` makes them; every objective has at least one label, where n >= objectives."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def ids(length: int) -> list[int]:
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows = []
    for index in range(n):
        prefix = number(3, 12)
        # a start within the prefix: the responses begin alike; past it: the prompt's last token differs by side
        start = prefix - 1 if index % 3 == 1 else prefix + 1 if index % 3 == 2 else prefix
        labels = torch.rand(objectives, generator=generator).tolist()
        labels = [round(label) if index % 2 else label for label in labels]
        blank = (torch.rand(objectives, generator=generator) < missing).tolist()
        rows.append(
            {
                "prefix_ids": ids(prefix),
                "a_ids": ids(number(2, 7)),
                "b_ids": ids(number(2, 9)),
                "a_start": start,
                "b_start": start,
                "preferences": [
                    NAN if out and index != i else float(label)
                    for i, (label, out) in enumerate(zip(labels, blank, strict=True))
                ],
                "index": index,
            }
        )
    return rows
