"""What the adapters of models behind HTTP share: one kind of error, one client, and careful reading of answers.

An adapter speaks to one endpoint and tries once. Whether, where and when to try again is the pool's decision
(`premeditate.engine.pool`), and `EndpointError.kind` is what it decides by:

    kind          what happened                                              to send it again is
    busy          429, 503: not accepted                                     safe, after `retry_after`
    unreachable   no connection                                              safe
    failed        another 5xx, 408, or the connection was lost               safe: the endpoint gave up on it
    garbage       an answer that is not what the API promises                safe
    timeout       no answer in time; the connection was closed, which        safe where the endpoint notices, or honours
                  tells the endpoint that nobody waits any more; or a        the idempotency key
                  gateway says so (504, 524) and gave up waiting itself
    rejected      400, 413, 422, ...: this request is at fault               useless
    denied        401, 403, 404, 405: the address, key or model is wrong     useless, unless a gateway flagged it
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from premeditate.errors import ModelError

if TYPE_CHECKING:
    import httpx

Kind = Literal["busy", "unreachable", "failed", "garbage", "timeout", "rejected", "denied"]
TIMEOUT = 600.0
"""Seconds for one call, unless something else is asked for."""
MAX_ANSWER = 256 << 20
"""Bytes of an answer that are read; more is garbage."""
LONGEST_WAIT = 300.0
"""Seconds of a Retry-After that are believed."""
Request = TypeVar("Request", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


class EndpointError(ModelError):
    """One call that did not work: `kind` as in the table above; `retry_after` in seconds, where the endpoint said;
    `status`: the HTTP status, where there was an answer."""

    def __init__(
        self, kind: Kind, problem: str, mend: str, *, retry_after: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(problem, mend)
        self.kind: Kind = kind
        self.retry_after, self.status = retry_after, status


@dataclass(frozen=True)
class Health:
    """What an endpoint says of itself; None: it does not say. `capacity`: calls that it carries out at a time.
    `key`: it honours an Idempotency-Key."""

    capacity: int | None = None
    in_flight: int | None = None
    model: str | None = None
    key: bool = False


class Endpoint(Protocol[Request, Answer]):
    """One address that does one call at a time for each `send`.

    `name` goes into records, so it says which model this is and never where: a run whose server moved must find its
    traces. `host` (host:port) is for people.
    """

    name: str
    host: str

    async def send(self, request: Request, timeout: float | None = None) -> Answer:
        """Raises `EndpointError`, and nothing else for what the far side does. Cancelling closes the connection."""
        ...

    async def health(self) -> Health:
        """Raises `EndpointError`; an endpoint without such a route answers `Health()`."""
        ...

    async def aclose(self) -> None: ...


class Http:
    """An `httpx.AsyncClient` for one base URL, made anew for each event loop that uses it (`premeditate.edit` called
    twice runs two loops, and connections do not outlive theirs).

    `url`: http(s)://host[:port][/path]. `root`: the path where `url` has none. `api_key` goes out as a bearer token.
    Redirects are not followed: a key is for the address that it was given for.
    """

    def __init__(
        self, url: str, *, root: str = "", api_key: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises for one that is no number up to 65535
        except ValueError as error:
            raise ModelError(f"not an address: {error}", "give http://host:port/path or https://...") from None
        if parts.username or parts.password:
            raise ModelError("the address holds a password", "leave it out, and give the key by api_key or environment")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ModelError(f"{url} is not an address", "give http://host:port/path or https://...")
        self.url, self.host = url.rstrip("/") + ("" if parts.path.strip("/") else root), parts.netloc
        self._headers = dict(headers or {})
        if key := str(api_key or "").strip():  # a key read from a file ends with its line
            if not (key.isascii() and key.isprintable() and " " not in key):
                # Said here and without it: httpx would show the whole header, which then stands in the record.
                raise ModelError("the API key holds a blank or a character that no key has", "copy it once more")
            self._headers["Authorization"] = f"Bearer {key}"
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = 0
        """In flight on this loop."""

    def _open(self) -> httpx.AsyncClient:
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # How many calls run at once is the pool's decision, not the client's.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._client = httpx.AsyncClient(
                headers=self._headers, limits=limits, follow_redirects=False, trust_env=False
            )
            self._loop, self._calls = loop, 0
        return self._client

    async def aclose(self) -> None:
        """Closes the connections, unless somebody else's call is under way: then that one's owner closes them."""
        if self._calls > 0 and self._loop is asyncio.get_running_loop():
            return
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    async def call(self, method: str, path: str, *, timeout: float | None = None, **options: Any) -> httpx.Response:
        """One HTTP call, read to its end. `path`: below the base URL, or a whole URL of the same origin. `timeout`
        bounds all of it, in seconds. `options`: httpx's (json, data, files, headers). Raises `EndpointError` for
        everything but a 2xx answer."""
        import httpx

        whole = self.url + path if path.startswith("/") else path
        if origin(whole) != origin(self.url):
            raise EndpointError(
                "denied", f"{self.host} points to another host", "give that one's address, if it is meant"
            )
        seconds = TIMEOUT if timeout is None else timeout
        client = self._open()
        self._calls += 1
        try:
            async with asyncio.timeout(seconds):
                # One clock for the whole call: httpx's own timeouts start again with every chunk.
                clock = httpx.Timeout(None, connect=min(30.0, seconds))
                request = client.build_request(method, whole, timeout=clock, **options)
                request.read()  # a form goes out in one piece: field by field costs a system call each
                async with aclosing(await client.send(request, stream=True)) as response:
                    body = bytearray()
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_ANSWER:
                            raise EndpointError(
                                "garbage", f"{self.host} sent more than {MAX_ANSWER >> 20} MiB", "check the address"
                            )
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            raise EndpointError(
                "timeout", f"{self.host} did not answer within {seconds:g} s", "give it a longer timeout, or check it"
            ) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise EndpointError(
                "unreachable",
                f"{self.host} cannot be reached ({_why(error)})",
                "start the server, or check the address",
            ) from error
        except httpx.DecodingError as error:
            raise EndpointError("garbage", f"{self.host} sent a damaged body", "check the server") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise EndpointError("denied", f"{self.host} is not an address ({_why(error)})", "check it") from error
        except httpx.HTTPError as error:
            raise EndpointError(
                "failed", f"{self.host} broke off the call ({_why(error)})", "look into the server's log"
            ) from error
        finally:
            self._calls -= 1
        complete = httpx.Response(response.status_code, headers=_plain(response.headers), content=bytes(body),
                                  request=response.request)  # fmt: skip
        if not complete.is_success:
            raise status_error(self.host, complete)
        return complete


class Once:
    """`await once()` does the work unless it was done; callers at the same time share it. Work that failed, or belonged
    to an event loop that is over, is done again the next time."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.done = False
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._waiting = 0

    async def __call__(self) -> None:
        if self.done:
            return
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task, self._waiting = loop.create_task(self._run()), 0
            # Nobody may be left to hear of a failure.
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._waiting += 1
        try:
            await asyncio.shield(self._task)
        finally:
            self._waiting -= 1

    async def _run(self) -> None:
        await self._work()
        self.done = True

    def leave(self) -> None:
        """Ends work that nobody waits for."""
        task = self._task
        if task is not None and self._waiting <= 0 and task.get_loop() is asyncio.get_running_loop():
            task.cancel()


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what a key is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _plain(headers: Any) -> list[tuple[str, str]]:
    """Headers of a body that was decoded already."""
    gone = ("content-encoding", "content-length", "transfer-encoding")
    return [(k, v) for k, v in headers.items() if k.lower() not in gone]


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def status_error(host: str, response: httpx.Response) -> EndpointError:
    """The error that a response other than 2xx amounts to, with what the server says about it."""
    code = response.status_code
    said = reason(response)
    what = f"{host} answered {code}" + (f": {said}" if said else "")
    if code in (429, 503):
        wait = retry_after(response)
        return EndpointError("busy", what, "wait, or ask for less at a time", retry_after=wait, status=code)
    if code in (401, 403):
        return EndpointError("denied", what, "check the API key", status=code)
    if code in (404, 405):
        return EndpointError("denied", what, "check the address and the model's name", status=code)
    if code in (504, 524):
        return EndpointError("timeout", what, "give the gateway before the server a longer timeout", status=code)
    if code >= 500 or code == 408:
        return EndpointError("failed", what, "look into the server's log", status=code)
    if 300 <= code < 400:
        return EndpointError("denied", what, "give the address that it redirects to", status=code)
    return EndpointError("rejected", what, "change the request: the server does not accept this one", status=code)


def reason(response: httpx.Response) -> str:
    """What an error body says, on one line: OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or plain text; ""
    for a page of HTML."""
    try:
        body = response.json()
    except ValueError:
        text = response.text.strip()
        return "" if text.startswith("<") else " ".join(text.split())[:300]
    return said(body)


def said(body: Any) -> str:
    """The error message inside a JSON body, "" where there is none."""
    for _ in range(4):
        if isinstance(body, dict):
            body = next((body[k] for k in ("error", "message", "detail", "msg") if body.get(k)), "")
        elif isinstance(body, list) and body:
            body = body[0]
        else:
            break
    return " ".join(body.split())[:300] if isinstance(body, str) else ""


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None without one that can be read."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def read_json(host: str, response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a 2xx answer. Raises `EndpointError` ("garbage") for anything else, HTML and truncated JSON
    included; "failed" for an object that holds an error."""
    try:
        body = json.loads(response.content)
    except ValueError:
        kind = "a web page" if response.content.lstrip()[:1] == b"<" else "something that is not JSON"
        raise EndpointError("garbage", f"{host} sent {kind}", "check the address (is /v1 missing?)") from None
    if not isinstance(body, dict):
        raise EndpointError("garbage", f"{host} sent JSON that is no object", "check the address")
    if body.get("error"):
        raise EndpointError("failed", f"{host} answered with an error: {said(body)}", "look into the server's log")
    return body


def api_key(url: str, *names: str) -> str | None:
    """The key for `url` from the environment: the first of `names` that is set; OPENAI_API_KEY only for OpenAI's own
    host or the one in OPENAI_BASE_URL, so that it never reaches anybody else."""
    for name in names:
        if value := os.environ.get(name):
            return value
    own = {"api.openai.com", urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname}
    return os.environ.get("OPENAI_API_KEY") or None if urlsplit(url).hostname in own else None
