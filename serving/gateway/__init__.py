"""The gateway: OpenAI's surface and ours over a set of engines.

Lifecycle: `Gateway(settings, engines=..., registry=..., ...)` holds the parts, `create_app(gateway)` is the ASGI app
whose lifespan starts and stops them.
"""

from serving.gateway.app import create_app
from serving.gateway.state import Gateway

__all__ = ["Gateway", "create_app"]
