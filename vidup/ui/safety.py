"""Access: which requests are accepted, and for which files."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidup.errors import ConfigError, MediaError, VidupError

_POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'"
_SENT = {
    "content-security-policy": f"{_POLICY}; frame-ancestors 'none'; form-action 'self'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_ONWARD = '<!doctype html><meta http-equiv="refresh" content="0; url=/"><a href="/">vidup</a>'
_BODIES = {"/api/upload": "application/octet-stream"}
"""The content type of requests other than GET; another site cannot send it without a CORS preflight."""
_MOST_ENTRIES = 10_000
"""Entries of a folder that are listed."""


class Refused(VidupError):
    """A request that is refused, with its HTTP status."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Middleware that accepts only requests with the token, in the cookie set by the first visit.

    The Host header must name this machine, against DNS rebinding, and an Origin header must be the server's own.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token, f"vidup_{port}"
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SENT.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store" if scope["path"].startswith("/api/") else "no-cache")
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self._app)(scope, receive, sealed)

    def _refusal(self, request: Request) -> Response | None:
        """The response to a request that is refused or redirected; None if it is accepted."""
        headers, path = request.headers, request.scope["path"]
        host = headers.get("host", "")
        if not self._is_ours(host):
            return refusal(f"host {host!r}: is not this machine's; open the address that vidup ui printed", 421)
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return refusal(f"origin {origin!r}: is not this page; another site may not use it", 403)
        given = request.query_params.get("token")
        if path == "/" and request.method == "GET" and given:
            if not self._is_token(given):
                return refusal("the token is another server's; open the address that vidup ui printed last", 403)
            # After a link on another site browsers send no SameSite=Strict cookie, not even to the redirect's target.
            linked = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            answer: Response = HTMLResponse(_ONWARD) if linked else RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return refusal("the token is missing; open the address that vidup ui printed", 403)
        wanted = _BODIES.get(path, "application/json")
        if request.method not in ("GET", "HEAD") and headers.get("content-type", "").partition(";")[0] != wanted:
            return refusal(f"content-type {headers.get('content-type', '')!r}: expected {wanted}", 415)
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header is an IP address or a name of this machine."""
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def refusal(message: str, status: int) -> JSONResponse:
    """An error for the page, in one line."""
    return JSONResponse({"error": message}, status)


class Folders:
    """The folders that the server may use; nothing outside of them is read or written. Raises ConfigError."""

    def __init__(self, folders: Sequence[str | os.PathLike[str]]) -> None:
        self.roots: list[Path] = []
        for folder in folders:
            path = Path(os.path.realpath(folder))
            if not path.is_dir():
                raise ConfigError(f"{folder}: is no folder; give one that is there")
            if path not in self.roots:
                self.roots.append(path)

    def within(self, path: str) -> Path:
        """Resolve a path with all links, relative to the first folder; raises Refused if it lies outside of all."""
        if not isinstance(path, str) or not path or "\0" in path:
            raise Refused(f"{path!r}: is no path", 400)
        try:
            found = Path(os.path.realpath(self.roots[0] / path))
        except (OSError, ValueError) as error:
            raise Refused(f"{path}: is no path: {error}", 400) from None
        if not any(found.is_relative_to(root) for root in self.roots):
            raise Refused(f"{path}: lies outside of the folders of this page; start vidup ui with its folder")
        return found

    def folder(self, path: str) -> Path:
        """An existing folder; raises as `within`, and MediaError if it is none."""
        found = self.within(path)
        if not stat.S_ISDIR(_mode(found)):
            raise MediaError(f"{found}: is no folder")
        return found

    def file(self, path: str) -> Path:
        """An existing regular file; raises as `folder`."""
        found = self.within(path)
        mode = _mode(found)
        if stat.S_ISDIR(mode):
            raise MediaError(f"{found}: is a folder; choose a file in it")
        if not stat.S_ISREG(mode):
            raise MediaError(f"{found}: is a pipe or a device; choose a file")
        return found


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise MediaError(f"{path}: {'there is no such file' if gone else error.strerror or error}") from None


def listing(folders: Folders, path: Path, videos: Iterable[str]) -> dict[str, object]:
    """List a folder without hidden files; `videos` are the endings of files that can be upscaled."""
    inside, files, endings = [], [], set(videos)
    try:
        entries = sorted(path.iterdir(), key=lambda entry: entry.name.lower())
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from None
    for entry in entries[:_MOST_ENTRIES]:
        if entry.name.startswith("."):
            continue
        try:
            facts = (folders.within(str(entry)) if entry.is_symlink() else entry).stat()
        except (VidupError, OSError):  # a broken link, or one to the outside
            continue
        if stat.S_ISDIR(facts.st_mode) and entry.suffix != ".vidup":
            inside.append(entry.name)
        elif stat.S_ISREG(facts.st_mode):
            files.append({"name": entry.name, "size": facts.st_size, "video": entry.suffix.lower() in endings})
    parent = path.parent if any(path.parent.is_relative_to(root) for root in folders.roots) else None
    left = max(0, len(entries) - _MOST_ENTRIES)
    return {"path": str(path), "parent": parent and str(parent), "folders": inside, "files": files, "left": left}
