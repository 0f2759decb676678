"""What a judge's server may cost in one run: calls, tokens, money, none of which is ever exceeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LIMITS = ("calls", "tokens", "usd")


@dataclass(frozen=True)
class Cost:
    """Of one request or of many: requests sent, tokens read and written."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class Budget:
    """What was spent, what requests under way may still cost, and what may be spent in all.

    A request is let go only if everything under way at its dearest stays within the limits: its input counts as one
    token per byte and its output as all that it may write, until the server says what it was. A request whose answer
    never came keeps its dearest price, since it may be on the bill.

    Args:
        limits: some of `LIMITS`.
        prices: {"input", "output"}: USD per million tokens; needed by a limit in usd.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    spent: Cost = Cost()
    held: Cost = Cost()

    def fits(self, dearest: Cost) -> bool:
        """Whether one more request may go."""
        total = self.figures(_sum(_sum(self.spent, self.held), dearest))
        return all(total[name] <= limit for name, limit in self.limits.items())

    def hold(self, dearest: Cost) -> None:
        """A request goes."""
        self.held = _sum(self.held, dearest)

    def settle(self, dearest: Cost, used: Cost) -> None:
        """It came back."""
        self.held = _sum(self.held, dearest, -1)
        self.spent = _sum(self.spent, used)

    def figures(self, cost: Cost) -> dict[str, float]:
        """A cost by the names of `LIMITS`; usd is 0 without prices."""
        usd = self.price(cost)
        return {"calls": cost.calls, "tokens": cost.input_tokens + cost.output_tokens, "usd": usd}

    def price(self, cost: Cost) -> float:
        """USD of a cost."""
        rates = self.prices
        return (cost.input_tokens * rates.get("input", 0.0) + cost.output_tokens * rates.get("output", 0.0)) / 1e6

    def said(self) -> str:
        """What was spent of what may be."""
        spent = self.figures(self.spent)
        return ", ".join(f"{spent[name]:,.6g} of {limit:,.6g} {name}" for name, limit in self.limits.items())


def _sum(a: Cost, b: Cost, sign: int = 1) -> Cost:
    return Cost(
        a.calls + sign * b.calls, a.input_tokens + sign * b.input_tokens, a.output_tokens + sign * b.output_tokens
    )
