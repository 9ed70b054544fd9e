"""Engines: one base model each, behind one interface.

Lifecycle: `start` -> (`wait_ready` -> `load`/`unload` adapters, `open` requests)* -> `stop`. An engine that dies while
started comes back by itself with a higher `generation` and no adapters; residency watches that number.
`serving.engine.factory.build_engines` makes them from settings.
"""

from serving.engine.base import Answering, Engine, EngineResponse, EngineState, EngineStatus

__all__ = ["Answering", "Engine", "EngineResponse", "EngineState", "EngineStatus"]
