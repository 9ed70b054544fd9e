"""Residency: which adapters an engine holds, loaded on demand, each held while requests use it.

Lifecycle of one adapter: `absent -> staging -> staged -> loading -> ready -> draining -> absent`, and from `draining`
back to `ready` where it need not leave. A request enters `Residency.hold`, which returns at once for a ready adapter
and otherwise joins the one load that runs for it; leaving the context lets the adapter be evicted again.
"""

from serving.residency.hold import Hold, Patience, StillCold
from serving.residency.residency import Residency
from serving.residency.slots import AdapterState, Entry, SlotCache

__all__ = ["AdapterState", "Entry", "Hold", "Patience", "Residency", "SlotCache", "StillCold"]
