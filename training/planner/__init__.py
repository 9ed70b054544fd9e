"""The planner: peak memory, time, cost and storage of a training run, from the model's config alone; imports no torch.

`load_shape` reads a config (`shape`), `Recipe` says how to train (`recipe`), `find_card` names the device (`cards`).
`plan` puts them together: memory by part (`memory`), time and cost (`speed`), files (`storage`), and a verdict: fits as
asked, fits after the first fallback that helps, or not at all. `check` is `plan` that raises DoesNotFit.
docs/training-memory.md derives the formulas and compares them with measured peaks.
"""

from training.planner.cards import Card, card_names, find_card
from training.planner.errors import CardError, DoesNotFit, PlannerError, RecipeError, ShapeError
from training.planner.memory import Memory, memory_of
from training.planner.plan import Plan, Work, check, plan
from training.planner.recipe import Recipe
from training.planner.shape import ModelShape, load_shape, shape_names, shape_of

__all__ = [
    "Card",
    "CardError",
    "DoesNotFit",
    "Memory",
    "ModelShape",
    "Plan",
    "PlannerError",
    "Recipe",
    "RecipeError",
    "ShapeError",
    "Work",
    "card_names",
    "check",
    "find_card",
    "load_shape",
    "memory_of",
    "plan",
    "shape_names",
    "shape_of",
]
