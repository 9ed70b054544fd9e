"""What the router learns from, kept up with in a thread of the training worker: counting, and refits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from adapters_registry import DatabaseError
from adapters_registry.database import Database
from configs.agents import AgentPreset
from configs.routing import RoutingSettings
from training.routing.counting import Counter
from training.routing.gates import Gates
from training.routing.predicting import Predictor
from training.routing.refit import Refit, Scene
from training.routing.serving import ServingModels
from training.routing.versions import Versions

log = logging.getLogger(__name__)

COUNT_S = 5.0
REFIT_S = 60.0
"""how often it is asked whether a refit is due"""
SWEEP_S = 3600.0


class RouterKeeper:
    """Keeps evidence and versions between `start` and `stop`; `step` does once what the thread repeats.

    `bases` are the tiers' bases by name, the weakest first.
    """

    def __init__(
        self,
        database: Database,
        home: Path,
        presets: Mapping[str, AgentPreset],
        bases: tuple[str, ...],
        routing: RoutingSettings,
        *,
        count_s: float = COUNT_S,
    ) -> None:
        versions = Versions(database, home)
        self._scene = Scene(dict(presets), bases)
        self._models = ServingModels(versions)
        self._counter = Counter(database, routing.learning, self._predictor_of)
        self._gates = Gates(database, home, routing.learning)
        self._refit = Refit(database, versions, routing, self._scene, self._models.of)
        self._predictors: dict[str | None, Predictor] = {}
        self._count_s = count_s
        self._refit_at = self._sweep_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="router learning", daemon=True)

    def start(self) -> None:
        """Begin at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being done: one step of counting, or the fit of one scope."""
        self._ended.set()
        self._thread.join()

    def step(self) -> None:
        """Count, and refit and sweep where it is time. Raises DatabaseError and OSError."""
        self._models.refresh()
        self._predictors.clear()
        self._counter.begin()
        self._counter.count()
        self._gates.count(self._counter)
        self._counter.recount()
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._counter.sweep()
        if now >= self._refit_at:
            self._refit_at = now + REFIT_S
            self._refit.run(self._ended.is_set)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.step()
            except (DatabaseError, OSError) as error:
                log.warning("the router does not learn: %s", error)
            self._ended.wait(self._count_s)

    def _predictor_of(self, scope: str) -> Predictor:
        model = self._models.of(scope)
        version = model.version if model else None
        if version not in self._predictors:
            self._predictors[version] = self._scene.predictor(model)
        return self._predictors[version]
