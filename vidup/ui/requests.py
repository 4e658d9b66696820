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
_MOST_UPLOAD, _LEFT_FREE, _CHUNK = 8 << 30, 1 << 30, 1 << 20

Given = dict[str, Any]
"""The parameters of a request."""
Answer = dict[str, Any] | Response


def number(given: Given, name: str) -> float:
    """A number of 0 or more, 0 if missing."""
    try:
        found = float(given.get(name) or 0)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < 1e9:
        raise ConfigError(f"{name} = {str(given.get(name))[:80]!r}: expected a number of 0 or more")
    return found


Endpoint = Callable[[Request], Awaitable[Response]]


def names(given: Given, name: str) -> list[str]:
    """A list of strings, empty if missing."""
    found = given.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{name}: expected a list of strings")
    return found


def from_query(handle: Callable[[Given], Answer]) -> Endpoint:
    """An endpoint for parameters in the URL, run in a thread."""

    async def answer(request: Request) -> Response:
        return await _answer_of(handle, {**request.query_params, **request.path_params})

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
        return await _answer_of(handle, {**body, **request.path_params})

    return answer


async def _answer_of(handle: Callable[[Given], Answer], given: Given) -> Response:
    try:
        answer = await run_in_threadpool(handle, given)
    except Refused as error:
        return refusal(str(error), error.status)
    except VidupError as error:
        return refusal(str(error), 400)
    except OSError as error:
        return refusal(system_words(error), 400)
    except Exception as error:  # a bug: reported, and logged with its traceback
        log.exception("%s", error)
        return refusal(f"{type(error).__name__}: {first_line(error)}", 500)
    return answer if isinstance(answer, Response) else JSONResponse(answer)


def upload(folders: Folders) -> Endpoint:
    """An endpoint that writes the body to the first folder, under the name in the URL."""

    async def answer(request: Request) -> Response:
        try:
            path = _new_file(folders, request.query_params.get("name", ""))
            claimed = request.headers.get("content-length", "")
            _check_room(path, int(claimed) if claimed.isascii() and claimed.isdigit() else 0)
            await _receive(request, path)
        except Refused as error:
            return refusal(str(error), error.status)
        except VidupError as error:
            return refusal(str(error), 400)
        except ClientDisconnect:
            return refusal("the upload was broken off", 400)
        except OSError as error:
            return refusal(f"{error.filename or 'upload'}: cannot be written: {error.strerror or error}", 507)
        return JSONResponse({"path": str(path)})

    return answer


async def _receive(request: Request, path: Path) -> None:
    """Write a request's body to a new file, which appears when it is complete."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            size, data = 0, bytearray()
            async for piece in request.stream():
                data += piece
                size += len(piece)
                if size > _MOST_UPLOAD:
                    raise Refused(
                        f"{path.name}: is of more than {_MOST_UPLOAD >> 30} GiB; copy it into the folder", 413
                    )
                if len(data) >= _CHUNK:
                    await run_in_threadpool(file.write, bytes(data))
                    data.clear()
                    _check_room(path, 0)
            await run_in_threadpool(file.write, bytes(data))
        await run_in_threadpool(_place, part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _new_file(folders: Folders, name: str) -> Path:
    """The path of a new file in the first folder."""
    is_plain = name.isprintable() and not name.startswith(".") and not any(c in name for c in '/\\:*?"<>|')
    if not name or not is_plain or len(os.fsencode(name)) > 200:
        raise Refused(f"name = {name[:80]!r}: is no plain name of a file", 400)
    path = folders.roots[0] / name
    if os.path.lexists(path):
        raise Refused(f"{path}: exists; choose it there, or rename the file", 409)
    return path


def _check_room(path: Path, size: int) -> None:
    if size > _MOST_UPLOAD:
        raise Refused(f"{path.name}: is of more than {_MOST_UPLOAD >> 30} GiB; copy it into the folder", 413)
    if shutil.disk_usage(path.parent).free < size + _LEFT_FREE:
        raise Refused(f"{path.parent}: the disk is too full for {path.name}; make room", 507)


def _place(part: Path, path: Path) -> None:
    """Rename a file without replacing another."""
    try:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            path.open("xb").close()
            part.replace(path)
    except FileExistsError:
        raise Refused(f"{path}: exists; choose it there, or rename the file", 409) from None
