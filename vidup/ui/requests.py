"""Parsing requests and making responses: JSON, errors in one line."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from vidup.errors import ConfigError, VidupError, first_line, system_words
from vidup.ui.safety import Folders, Refused, refusal

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
"""Of a request's body, except of uploads."""
_MOST_UPLOAD, _LEFT_FREE = 8 << 30, 1 << 30

Given = dict[str, Any]
"""The parameters of a request."""
Answer = dict[str, Any] | Response
Endpoint = Callable[[Request], Awaitable[Response]]


def number(given: Given, name: str) -> float:
    """A number of 0 or more, 0 if missing."""
    try:
        found = float(given.get(name) or 0)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < 1e9:
        raise ConfigError(f"{name} = {str(given.get(name))[:80]!r}: expected a number of 0 or more")
    return found


def from_query(handle: Callable[[Given], Answer]) -> Endpoint:
    """An endpoint for parameters in the URL, run in a thread."""

    async def answer(request: Request) -> Response:
        return await _response(run_in_threadpool(handle, {**request.query_params, **request.path_params}))

    return answer


def from_body(handle: Callable[[Given], Answer]) -> Endpoint:
    """An endpoint for a JSON object, run in a thread."""

    async def answer(request: Request) -> Response:
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > _MOST_BYTES:
                return refusal(f"the request is of more than {_MOST_BYTES} bytes", 413)
        try:
            body = json.loads(data or b"{}")
        except (ValueError, RecursionError):
            return refusal("the request is no JSON", 400)
        if not isinstance(body, dict):
            return refusal("the request is no JSON object", 400)
        return await _response(run_in_threadpool(handle, {**body, **request.path_params}))

    return answer


async def _response(answer: Awaitable[Answer]) -> Response:
    """The response to a request, or to what went wrong with it."""
    try:
        found = await answer
    except VidupError as error:
        return refusal(str(error), error.status if isinstance(error, Refused) else 400)
    except OSError as error:
        return refusal(system_words(error), 400)
    except Exception as error:  # a bug: reported, and logged with its traceback
        log.exception("%s", error)
        return refusal(f"{type(error).__name__}: {first_line(error)}", 500)
    return found if isinstance(found, Response) else JSONResponse(found)


def upload(folders: Folders) -> Endpoint:
    """An endpoint that writes the body to the first folder, under the name in the URL."""

    async def answer(request: Request) -> Response:
        return await _response(_receive(request, folders))

    return answer


async def _receive(request: Request, folders: Folders) -> Answer:
    """Write a request's body to a new file, which appears when it is complete."""
    path = _new_file(folders, request.query_params.get("name", ""))
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        claimed = request.headers.get("content-length", "")
        size = int(claimed) if claimed.isascii() and claimed.isdigit() else 0
        _check_room(path, size, size)
        with part.open("xb") as file:
            size = 0
            async for piece in request.stream():
                size += len(piece)
                _check_room(path, size, len(piece))
                await run_in_threadpool(file.write, piece)
        await run_in_threadpool(_place, part, path)
    except ClientDisconnect:
        raise Refused("the upload was broken off", 400) from None
    except FileExistsError:
        raise Refused(f"{path}: exists; choose it there, or rename the file", 409) from None
    except OSError as error:
        line = f"{error.filename or 'upload'}: cannot be written: {error.strerror or error}"
        raise Refused(line, 507) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return {"path": str(path)}


def _new_file(folders: Folders, name: str) -> Path:
    """The path of a new file in the first folder."""
    is_plain = name.isprintable() and not name.startswith(".") and not any(c in name for c in '/\\:*?"<>|')
    if not name or not is_plain or len(os.fsencode(name)) > 200:
        raise Refused(f"name = {name[:80]!r}: is no plain name of a file", 400)
    path = folders.roots[0] / name
    if os.path.lexists(path):
        raise Refused(f"{path}: exists; choose it there, or rename the file", 409)
    return path


def _check_room(path: Path, size: int, left: int) -> None:
    """Refuse a file of such a size, of which so many bytes are still to be written."""
    if size > _MOST_UPLOAD:
        raise Refused(f"{path.name}: is of more than {_MOST_UPLOAD >> 30} GiB; copy it into the folder", 413)
    if shutil.disk_usage(path.parent).free < left + _LEFT_FREE:
        raise Refused(f"{path.parent}: the disk is too full for {path.name}; make room", 507)


def _place(part: Path, path: Path) -> None:
    """Rename a file without replacing another; raises FileExistsError."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        path.open("xb").close()
        part.replace(path)
