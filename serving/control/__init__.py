"""Several gateway processes over one fleet.

With `workers: N` the parent process keeps the engines and their residency (`ControlServer`); each worker is a whole
gateway whose fleet is a link to the parent (`LinkedFleet`), over a unix socket. Requests themselves go from the
worker straight to the engine. A worker that dies lets go of everything it held, because its connection ends.
"""

from serving.control.link import LinkedFleet
from serving.control.server import ControlServer

__all__ = ["ControlServer", "LinkedFleet"]
