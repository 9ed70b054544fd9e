"""What the router learns: outcomes of tasks on the tiers, and which agent a task belongs to.

Lifecycle: `fit_outcomes(rows)` and `fit_recogniser(texts, agents)` give estimators, `RouterModel.of` makes a version of
them, `save` and `load` take it from one process to another. Fitting imports scikit-learn; loading and predicting need
numpy alone, so that the request path stays light.
"""

from router.learned.fit import fit_outcomes, fit_recogniser
from router.learned.model import RouterModel
from router.learned.outcomes import OutcomeEstimator, RouteRow, TierOutcomes, TooFewRows
from router.learned.store import RouterModelInvalid

__all__ = [
    "OutcomeEstimator",
    "RouteRow",
    "RouterModel",
    "RouterModelInvalid",
    "TierOutcomes",
    "TooFewRows",
    "fit_outcomes",
    "fit_recogniser",
]
