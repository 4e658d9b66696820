"""A local page: choose a film, look at what a preset makes of it, run it. Stands on the public library alone."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import closing

from vidup.errors import ConfigError

_PORTS = 20
"""That are tried, one after the other."""


def serve(
    folders: Sequence[str | os.PathLike[str]],
    host: str,
    port: int,
    on_ready: Callable[[str], object],
) -> None:
    """Serve the page until the process is asked to end.

    Args:
        folders: nothing outside of them is read or written; the current one where none is given.
        host: the address to listen at; but for ``127.0.0.1`` others in the network can connect, if they have the token.
        port: the first that is tried; the next free one is taken.
        on_ready: is called with the page's address, the token in it.

    Raises:
        ConfigError: the extra is not installed, a folder is not there, the address cannot be listened at.
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
        name = f"[{host}]" if ":" in host else host if host not in ("0.0.0.0", "") else socket.gethostname()
        on_ready(f"http://{name}:{port}/?token={token}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the first free port from this one on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = "is taken"
    for number in range(port, min(port + _PORTS, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere it would take a port that somebody has
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
    raise ConfigError(f"host = {host}, port = {port}: cannot be listened at: {reason}; give others")
