"""What a choice weighs: success probability against price and wait, by the wishes of request, key, agent and settings.

    utility = P(success) - lambda * price - mu * expected wait

`price` is relative, in [0, 1] (see `RouterSnapshot.prices`), and the wait in seconds, so lambda and mu are success
probabilities: what the dearest tier's whole price, and a second, are worth. Budgets are in USD a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from configs.routing import Quality, RoutingSettings, RoutingWishes

CHARS_PER_TOKEN = 4
EXPECTED_OUTPUT = 256
"""tokens that an answer is taken to have, where the request does not limit them to fewer"""
PRICE_FACTOR: dict[Quality, float] = {"economy": 4.0, "balanced": 1.0, "best": 0.0}
"""what each quality does to lambda"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What somebody wants of a route: a request, an API key or an agent's preset; None leaves it to the next."""

    quality: Quality | None = None
    max_cost: float | None = None
    cost_weight: float | None = None
    wait_weight: float | None = None

    @classmethod
    def of(cls, said: RoutingWishes) -> Wishes:
        """From a preset or a key's record."""
        return cls(said.quality, said.max_cost, said.cost_weight, said.wait_weight)

    def over(self, below: Wishes) -> Wishes:
        """These, and `below` where they say nothing. Of two budgets the smaller holds: a key's is a limit."""
        if below is NO_WISHES or self is NO_WISHES:
            return self if below is NO_WISHES else below
        return Wishes(
            self.quality or below.quality,
            _least(self.max_cost, below.max_cost),
            below.cost_weight if self.cost_weight is None else self.cost_weight,
            below.wait_weight if self.wait_weight is None else self.wait_weight,
        )


NO_WISHES = Wishes()


class Terms(NamedTuple):
    """What holds for one request in the end. `cost_weight` has the quality in it; `max_cost` None is no budget."""

    quality: Quality
    cost_weight: float
    wait_weight: float
    max_cost: float | None

    @classmethod
    def of(cls, wishes: Wishes, routing: RoutingSettings) -> Terms:
        """The wishes over what the settings say."""
        quality = wishes.quality or routing.quality
        cost_weight = routing.cost_weight if wishes.cost_weight is None else wishes.cost_weight
        return cls(
            quality,
            cost_weight * PRICE_FACTOR[quality],
            routing.wait_weight if wishes.wait_weight is None else wishes.wait_weight,
            _least(wishes.max_cost, routing.max_cost),
        )

    def utility(self, probability: float, price: float, wait_s: float) -> float:
        """See the module."""
        return probability - self.cost_weight * price - self.wait_weight * wait_s


class Size(NamedTuple):
    """Tokens of a request as far as they are known before it runs."""

    prompt: float
    output: float

    @classmethod
    def of(cls, prompt_chars: int, max_tokens: int | None) -> Size:
        """About four characters a token; the output is what is usual, or the request's limit where that is less."""
        output = EXPECTED_OUTPUT if max_tokens is None else min(max_tokens, EXPECTED_OUTPUT)
        return cls(prompt_chars / CHARS_PER_TOKEN, output)

    def cost_usd(self, cost_per_mtok: float) -> float:
        """What the request is expected to cost."""
        return cost_per_mtok * (self.prompt + self.output) * 1e-6

    def answer_s(self, tokens_per_s: float | None) -> float:
        """How long the answer takes on an engine of that speed; 0 where the speed is not known."""
        return self.output / tokens_per_s if tokens_per_s else 0.0


def _least(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
