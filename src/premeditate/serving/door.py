"""Who may come in, and how much they may bring: exposure, the bearer key, pages in a browser, the size of a body."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException, Request

from premeditate.errors import PremeditateError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Exposed(PremeditateError):
    """A server that anybody could use."""


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or address, without a port) is this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, key: str | None, variable: str) -> None:
    """Raises `Exposed` where other machines could reach `host` and no key keeps them out, and for a key that no header
    can carry."""
    if not key and not is_loopback(host):
        raise Exposed(
            f"on {host} everybody who reaches this machine could use the server",
            f"set a key in {variable}, or listen on 127.0.0.1",
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise Exposed(
            f"the key in {variable} holds a blank or a character that no header carries", "choose another one"
        )


class Door:
    """`key` None: whoever is on this machine may come in, but no page of a browser on it."""

    def __init__(self, key: str | None) -> None:
        self._wanted = None if key is None else f"Bearer {key}".encode()

    def check(self, request: Request) -> None:
        """Raises 401 without the key, and 403 for what a foreign page sends."""
        if self._wanted is not None:
            given = request.headers.get("authorization", "").encode()
            # Compared in constant time, so that answers do not tell how much of a guess was right.
            if not hmac.compare_digest(given, self._wanted):
                raise HTTPException(401, "the key is missing or wrong", {"WWW-Authenticate": "Bearer"})
            return
        # A page that rebinds its name to 127.0.0.1 still says its own name; one that does not, says its origin.
        name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if not is_loopback(name) or "origin" in request.headers:
            raise HTTPException(403, "without a key only programs on this machine are served, and no web pages")

    def knows(self, request: Request) -> bool:
        """Whether the caller may be told what there is: false where it shows no key at all. Raises as `check`."""
        if self._wanted is not None and "authorization" not in request.headers:
            return False
        self.check(request)
        return True


def bounded(request: Request, most: int, seconds: float) -> Request:
    """The same request, whose body raises 413 beyond `most` bytes, however it is sent, and 408 where it does not come
    within `seconds`."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    return Request(request.scope, _counted(request.receive, most, seconds))


def _counted(receive: Receive, most: int, seconds: float) -> Receive:
    until, read = asyncio.get_running_loop().time() + seconds, 0

    async def counted() -> Message:
        nonlocal read
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {seconds:g} s") from None
        read += len(message.get("body", b""))
        if read > most:
            raise _too_large(most)
        return message

    return counted


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request has more than {most:,} bytes; send fewer samples at a time")
