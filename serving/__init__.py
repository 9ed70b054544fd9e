"""Serving: the endpoint, the engines behind it, and which adapters they hold.

Lifecycle: `serving.server.serve(settings, events)` composes the parts (`serving.composition`), starts the engines,
and answers until a signal ends it.
"""
