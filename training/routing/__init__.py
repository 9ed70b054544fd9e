"""What the router learns from cases: evidence for candidates, and router versions.

Lifecycle: `RouterKeeper`, in the training worker, counts rewarded cases (`counting`) and gates (`gates`) into evidence,
and refits versions (`refit`), which take over where they predict later cases better (`shadow`). `LearntSource` gives
the gateway what it is to decide with. `scopes` says whose cases change whose routes. `daao` alone fits with torch.
"""

from training.routing.errors import NothingToRollBack, VersionNotFound
from training.routing.keeper import RouterKeeper
from training.routing.service import LearntSource
from training.routing.versions import Version, Versions

__all__ = ["LearntSource", "NothingToRollBack", "RouterKeeper", "Version", "VersionNotFound", "Versions"]
