"""What the planner refuses. Each message is one line for a person.

PlannerError
├── ShapeError      the model's config cannot be read, or is of a kind that the planner does not know
├── CardError       no such card
├── RecipeError     the recipe contradicts itself or the model
└── DoesNotFit      no fallback makes the training fit the card; carries the plan
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.planner.plan import Plan


class PlannerError(Exception):
    """Base of all planner errors; `message` is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())


class ShapeError(PlannerError):
    """No shape can be read."""


class CardError(PlannerError):
    """No such card."""


class RecipeError(PlannerError):
    """The recipe cannot be planned."""


class DoesNotFit(PlannerError):
    """Nothing makes it fit; `plan` is the smallest that was tried."""

    def __init__(self, message: str, plan: Plan) -> None:
        super().__init__(message)
        self.plan = plan
