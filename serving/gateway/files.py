"""`/v1/files`: uploads for training, as OpenAI's API has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, Response

from serving.auth import Caller
from serving.errors import BadRequest
from serving.gateway.callers import admin
from serving.services import Document, UploadedFiles

UPLOAD_PATH = "/v1/files"
PURPOSE = "fine-tune"
CHUNK = 1 << 20
MAX_LISTED = 10_000


def files_router(files: UploadedFiles) -> APIRouter:
    """The routes, in front of `files`."""
    router = APIRouter(prefix=UPLOAD_PATH, tags=["files"])

    @router.post("")
    async def upload(request: Request, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Store a file of conversations: multipart fields `file` and `purpose` (`fine-tune`)."""
        async with request.form() as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise BadRequest("'file' is missing: send it as a part of multipart/form-data", param="file")
            if purpose != PURPOSE:
                raise BadRequest(f"'purpose' must be '{PURPOSE}': files are stored for training alone", param="purpose")
            name = file.filename or "upload.jsonl"
            return file_object(await asyncio.to_thread(files.add_file, name, PURPOSE, caller.name, _chunks(file.file)))

    @router.get("")
    async def list_files(
        purpose: str | None = None,
        after: str | None = None,
        limit: int = Query(MAX_LISTED, ge=1, le=MAX_LISTED),
        order: Literal["asc", "desc"] = "desc",
        caller: Caller = Depends(admin),
    ) -> dict[str, Any]:
        """Files behind the file `after`."""
        found = await asyncio.to_thread(
            files.list_files, purpose=purpose, after=after, limit=limit + 1, oldest_first=order == "asc"
        )
        return page([file_object(file) for file in found], limit)

    @router.get("/{file_id}")
    async def retrieve(file_id: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """One file."""
        return file_object(await asyncio.to_thread(files.file, file_id))

    @router.get("/{file_id}/content")
    async def content(file_id: str, caller: Caller = Depends(admin)) -> Response:
        """What was uploaded, byte by byte."""
        path = await asyncio.to_thread(files.file_path, file_id)
        return FileResponse(path, media_type="application/octet-stream")

    @router.delete("/{file_id}")
    async def delete(file_id: str, caller: Caller = Depends(admin)) -> dict[str, Any]:
        """Delete a file; 409 while a job needs it."""
        await asyncio.to_thread(files.delete_file, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def file_object(file: Document) -> dict[str, Any]:
    """OpenAI's `file`."""
    return {
        "id": file["id"],
        "object": "file",
        "bytes": file["bytes"],
        "created_at": seconds(file["created_at"]),
        "filename": file["filename"],
        "purpose": file["purpose"],
        "status": "processed",
        "status_details": None,
        "expires_at": None,
    }


def page(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list, from one entry more than was asked for where there are more."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


def seconds(at: str | None) -> int | None:
    """A time as OpenAI writes it: whole seconds since 1970."""
    return None if at is None else int(datetime.fromisoformat(at).timestamp())


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK):
        yield chunk
