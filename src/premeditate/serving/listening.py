"""Where a server listens: its port is taken before anything is loaded, and it says that it serves when it can."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from premeditate.errors import PremeditateError


class NotListening(PremeditateError):
    """An address or a port that a server cannot have."""


def reserve(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`, which nobody is connected to before `serve` has them listen. Raises
    `NotListening`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise NotListening(f"nobody knows the address {host}", "give --host an address of this machine") from None
    bound: list[socket.socket] = []
    why: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            bound.append(_bound(family, kind, protocol, address))
        except OSError as error:
            why = error
            # A name may have an address of a family that this machine does not have.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                close(bound)
                raise _refused(error, host, port) from None
    if not bound:
        raise _refused(why or OSError(errno.EADDRNOTAVAIL, "no address"), host, port)
    return bound


def serve(app: Any, host: str, port: int, sockets: Sequence[socket.socket], ready: Callable[[], None]) -> None:
    """Serves `app` on what `reserve` gave until interrupted; `ready` is called once connections are taken. Raises
    `NotListening`."""
    import uvicorn

    try:
        for one in sockets:
            try:
                one.listen(2048)
            except OSError as error:  # another one that had reserved it was faster
                raise _refused(error, host, port) from None
        ready()
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, server_header=False)
        )
        with suppress(KeyboardInterrupt):  # how it ends
            server.run(sockets=list(sockets))
        if not server.started:
            raise NotListening(f"the server on {host}:{port} did not start", "the lines above say why")
    finally:
        close(sockets)


def close(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _refused(error: OSError, host: str, port: int) -> NotListening:
    if error.errno == errno.EADDRINUSE:
        return NotListening(f"port {port} is taken", "give another --port, or end what listens there")
    if error.errno == errno.EACCES:
        return NotListening(f"port {port} is not for this user", "give a --port of 1024 or above")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return NotListening(f"this machine does not have the address {host}", "give --host one that it has")
    return NotListening(f"nothing can listen on {host}:{port} ({error.strerror})", "give another --host or --port")
