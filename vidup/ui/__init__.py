"""A local web page to choose, preview and run; built on the public library only."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import closing

from vidup.errors import ConfigError

_PORTS = 20
"""The number of ports that are tried."""


def serve(
    folders: Sequence[str | os.PathLike[str]],
    host: str,
    port: int,
    on_ready: Callable[[str], object],
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        folders: nothing outside them is read or written; the current one if none is given.
        host: the address to listen on; with any but ``127.0.0.1`` others in the network can connect, with the token.
        port: the first port to try; the next free one is used.
        on_ready: called with the page's URL, which contains the token.

    Raises:
        ConfigError: the extra is not installed, a folder does not exist, or no port can be used.
    """
    try:
        import uvicorn

        from vidup.ui.safety import Folders
        from vidup.ui.server import application
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio", "filelock"):
            raise
        raise ConfigError(f'ui: needs {error.name}; pip install "vidup[ui]" brings it') from None
    allowed = Folders(folders or ["."])
    with closing(_listen(host, port)) as listener:
        port, token = listener.getsockname()[1], secrets.token_urlsafe(32)
        app = application(allowed, token, host, port, apart=True)
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2)
        name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
        on_ready(f"http://{name}:{port}/?token={token}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Listen on the first free port, starting with this one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = "is taken"
    for number in range(port, min(port + _PORTS, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # on Windows it would share a port that is in use
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
    raise ConfigError(f"host = {host}, port = {port}: cannot be listened at: {reason}; give others")
