"""`/v1/feedback` and `/v1/cases`: what answers were worth, and what is kept of requests.

A caller that is no admin gives feedback to its own requests, and sees those alone.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse

from adapters_registry.errors import ResourceNotFound
from serving.auth import Caller, refuse_foreign_page
from serving.gateway.callers import admin
from serving.services import Cases, Document

MAX_LISTED = 100
MAX_TEXT = 1 << 20
LATE_S = (0.05, 0.15, 0.3, 0.5, 1.0)
"""pauses in which a case may still arrive: feedback can be faster than the recorder"""
_THUMBS = {"up": 1.0, "down": 0.0}

Reward = Annotated[float, BeforeValidator(lambda given: _THUMBS.get(given, given) if isinstance(given, str) else given)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class Feedback(BaseModel):
    """Body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid")

    response_id: str = Field(
        min_length=1, max_length=255, description="`x-request-id` of the answer, the id in its body, or a case's id"
    )
    reward: Reward | None = Field(None, ge=0, le=1, description="0 to 1, or `up` and `down`")
    label: Text | None = Field(None, description="the right class")
    correction: Text | None = Field(None, description="what the answer should have been")
    source: str | None = Field(None, max_length=64, description="who judges; default: the API key's name")


class Wanted(BaseModel):
    """Query of `GET /v1/cases`: what the fields of the listed cases must be."""

    model_config = ConfigDict(extra="forbid")

    agent: str | None = None
    session: str | None = None
    user: str | None = None
    adapter: str | None = None
    source: Literal["served", "import", "api"] | None = None
    split: Literal["train", "holdout"] | None = None
    rewarded: bool | None = None
    after: str | None = Field(None, description="a case; the list begins behind it")
    limit: int = Field(20, ge=1, le=MAX_LISTED)


class NewCase(BaseModel):
    """Body of `POST /v1/cases`."""

    model_config = ConfigDict(extra="forbid")

    agent: str = Field(min_length=1, max_length=255)
    messages: list[dict[str, Any]] = Field(min_length=1, description="the prompt")
    response: str | dict[str, Any] | None = Field(None, description="the answer: its text, or the assistant's message")
    tools: list[dict[str, Any]] | None = None
    label: Text | None = None
    correction: Text | None = None
    reward: Reward | None = Field(None, ge=0, le=1)
    task_type: str | None = Field(None, max_length=255)
    session: str | None = None
    user: str | None = None
    episode: str | None = None
    split: Literal["train", "holdout"] | None = Field(None, description="default: drawn by hash")


def cases_router(cases: Cases) -> APIRouter:
    """The routes, in front of `cases`."""
    router = APIRouter(prefix="/v1", tags=["cases"])
    _add_feedback(router, cases)
    _add_reading(router, cases)
    _add_changes(router, cases)
    return router


def _add_feedback(router: APIRouter, cases: Cases) -> None:
    @router.post("/feedback")
    async def feedback(request: Request, body: Feedback) -> dict[str, Any]:
        """Tell what an answer was worth, or what it should have been; the last word counts."""
        caller: Caller = request.state.caller
        refuse_foreign_page(caller, request.headers.get("origin"))
        for pause in (*LATE_S, None):
            try:
                judged = await asyncio.to_thread(
                    cases.feedback,
                    body.response_id,
                    reward=body.reward,
                    label=body.label,
                    correction=body.correction,
                    source=body.source or caller.name,
                    owner=_owner(caller),
                )
                return {**case_object(judged), "object": "feedback", "response_id": body.response_id}
            except ResourceNotFound:
                if pause is None:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError  # the last turn returns or raises


def _add_reading(router: APIRouter, cases: Cases) -> None:
    @router.get("/cases")
    async def list_cases(request: Request, wanted: Annotated[Wanted, Query()]) -> dict[str, Any]:
        """Cases behind the case `after`, the newest first."""
        fields = wanted.model_dump(exclude={"after", "limit"}) | {"owner": _owner(request.state.caller)}
        found = await asyncio.to_thread(cases.cases, limit=wanted.limit + 1, after=wanted.after, **fields)
        shown = [case_object(case) for case in found[: wanted.limit]]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > wanted.limit,
        }

    @router.get("/cases/{case_id}")
    async def show(request: Request, case_id: str) -> dict[str, Any]:
        """One case, by its own id or a response's."""
        return case_object(await asyncio.to_thread(cases.case, case_id, owner=_owner(request.state.caller)))


def _add_changes(router: APIRouter, cases: Cases) -> None:
    @router.post("/cases", status_code=201)
    async def add(body: NewCase, caller: Caller = Depends(admin)) -> JSONResponse:
        """Store a case; 200 with the one that is there when its content is known already."""
        case, is_new = await asyncio.to_thread(cases.add_case, body.model_dump(), owner=caller.name)
        return JSONResponse(case_object(case), 201 if is_new else 200)

    @router.delete("/cases")
    async def delete(
        user: str | None = None, session: str | None = None, caller: Caller = Depends(admin)
    ) -> dict[str, Any]:
        """Delete all cases of a user or of a session (of both, where both are named), for good."""
        deleted = await asyncio.to_thread(cases.delete_cases, user=user, session=session)
        return {"object": "list.deleted", "deleted": deleted}

    @router.delete("/cases/{case_id}")
    async def delete_one(case_id: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Delete a case for good."""
        case = await asyncio.to_thread(cases.case, case_id, owner=None)
        await asyncio.to_thread(cases.delete_cases, case_id=case["id"])
        return {"id": case["id"], "object": "case.deleted", "deleted": True}


def case_object(case: Document) -> dict[str, Any]:
    """A case as the API shows it."""
    return {"object": "case", **case}


def _owner(caller: Caller) -> str | None:
    """Whose cases the caller may touch; None for everybody's."""
    return None if caller.admin else caller.name
