"""Who may use the routes that change things."""

from __future__ import annotations

from fastapi import Request

from serving.auth import Caller, refuse_foreign_page, require_admin


def admin(request: Request) -> Caller:
    """The caller, if it may change adapters, cases and jobs. Raises Forbidden."""
    caller: Caller = request.state.caller
    require_admin(caller)
    refuse_foreign_page(caller, request.headers.get("origin"))
    return caller
