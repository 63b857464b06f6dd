"""The room of what is behind HTTP: every way in which a call can go wrong has one name, and keys stay at home."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from premeditate import remote
from premeditate.errors import ExitCode, ModelError
from premeditate.remote import EndpointError, Http, api_key, read_json, retry_after, said, status_error
from support.loopback import Loopback


class Server(Loopback):
    """Answers by path; remembers the headers of every call, and who left."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.left = list[dict[str, str]](), 0
        self.app.api_route("/v1/{what:path}", methods=["GET", "POST"])(self._do)

    async def _do(self, what: str, request: Request) -> Response:
        self.seen.append(dict(request.headers))
        match what:
            case "hang":
                while not await request.is_disconnected():
                    await asyncio.sleep(0.005)
                self.left += 1
            case "drip":
                return StreamingResponse(self._drip())
            case "redirect":
                return RedirectResponse("/v1/fine")
            case "damaged":
                return Response(gzip.compress(b"{}" * 99)[:-30] + b"x" * 30, headers={"Content-Encoding": "gzip"})
            case "zipped":
                return Response(gzip.compress(b'{"a": 1}'), headers={"Content-Encoding": "gzip"})
            case "broken":
                return StreamingResponse(self._drip(), headers={"Content-Length": "99999"})
        return Response(b'{"fine": true}', media_type="application/json")

    @staticmethod
    async def _drip() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"." * 100
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.seen.clear()
    return running


def get(http: Http, path: str = "/fine", **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        try:
            return await http.call("GET", path, **options)
        finally:
            await http.aclose()

    return asyncio.run(go())


def fails(http: Http, path: str, **options: Any) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        get(http, path, **options)
    return caught.value


def answer(status: int = 200, content: bytes | str = b"", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=content, headers=named)


# -- calls ---------------------------------------------------------------------------------------------------------


def test_one_client_serves_one_loop_after_the_other(server: Server) -> None:
    http = Http(f"{server.origin}/v1/")
    assert read_json("h", asyncio.run(http.call("GET", "/fine"))) == {"fine": True}  # left open on purpose
    assert [get(http).status_code for _ in range(3)] == [200] * 3
    assert http.host == server.host and http.url == f"{server.origin}/v1"


def test_a_zipped_answer_is_read(server: Server) -> None:
    assert get(Http(f"{server.origin}/v1"), "/zipped").json() == {"a": 1}


def test_calls_run_side_by_side(server: Server) -> None:
    http = Http(f"{server.origin}/v1")

    async def go() -> None:
        await asyncio.gather(*(http.call("GET", "/drip") for _ in range(12)))
        await http.aclose()

    start = time.perf_counter()
    asyncio.run(go())
    assert time.perf_counter() - start < 4  # one after the other it would be 10


@pytest.mark.parametrize(("path", "options", "kind", "words"), [
    ("/hang", {"timeout": 0.2}, "timeout", "within 0.2 s"), ("/drip", {"timeout": 0.2}, "timeout", "within 0.2 s"),
    ("/redirect", {}, "denied", "307"), ("/damaged", {}, "garbage", "damaged"), ("/broken", {}, "failed", "broke off"),
])  # fmt: skip
def test_calls_that_fail(server: Server, path: str, options: dict[str, Any], kind: str, words: str) -> None:
    error = fails(Http(f"{server.origin}/v1"), path, **options)
    assert error.kind == kind and words in error.problem and server.host in error.problem and error.mend
    assert len(server.seen) == 1  # no retry, and a redirect is not followed


def test_too_long_an_answer_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_ANSWER", 1000)
    start = time.perf_counter()
    assert fails(Http(f"{server.origin}/v1"), "/drip").kind == "garbage"
    assert time.perf_counter() - start < 0.7  # it would drip for 0.8


def test_nobody_there() -> None:
    with Loopback() as gone:
        url = gone.origin
    assert fails(Http(url), "/").kind == "unreachable"
    assert fails(Http("http://nowhere.invalid"), "/", timeout=5).kind == "unreachable"


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_the_server_learns_that_nobody_waits(server: Server, how: str) -> None:
    http, before = Http(f"{server.origin}/v1"), server.left

    async def go() -> None:
        call = asyncio.create_task(http.call("GET", "/hang", timeout=0.2 if how == "timeout" else None))
        if how == "cancel":
            while not server.seen:
                await asyncio.sleep(0.01)
            call.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancel" else EndpointError):
            await call
        async with asyncio.timeout(3):
            while server.left == before:
                await asyncio.sleep(0.01)
        assert (await http.call("GET", "/fine")).status_code == 200
        await http.aclose()

    asyncio.run(go())


def test_closing_leaves_a_call_of_somebody_else_alone(server: Server) -> None:
    """One endpoint may serve two runs at a time; the first to end closes it."""

    async def go() -> None:
        http = Http(f"{server.origin}/v1")
        call = asyncio.create_task(http.call("GET", "/drip"))
        while not server.seen:
            await asyncio.sleep(0.01)
        await http.aclose()
        assert len((await call).content) == 4000
        assert http._client is not None
        await http.aclose()
        assert http._client is None

    asyncio.run(go())


def test_work_that_is_done_once_is_shared_and_ended_only_where_nobody_waits() -> None:
    done: list[str] = []

    async def work() -> None:
        done.append("begun")
        await asyncio.sleep(0.05)
        if len(done) == 1:
            raise EndpointError("unreachable", "not yet", "wait")
        done.append("done")

    async def go() -> None:
        once = remote.Once(work)
        ends = await asyncio.gather(once(), once(), return_exceptions=True)
        assert [type(end) for end in ends] == [EndpointError] * 2 and done == ["begun"]
        waits = asyncio.create_task(once())
        await asyncio.sleep(0.01)
        once.leave()
        await waits
        await once()
        assert once.done and done == ["begun", "begun", "done"]
        other = remote.Once(work)
        left = asyncio.create_task(other())
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        other.leave()
        await asyncio.sleep(0.1)
        assert not other.done and len(asyncio.all_tasks()) == 1

    asyncio.run(go())


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_goes_to_its_own_address_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    http = Http(f"{server.origin}/v1", api_key="secret")
    get(http)
    get(http, f"{server.origin}/v1/other")
    assert [seen.get("authorization") for seen in server.seen] == ["Bearer secret"] * 2
    server.seen.clear()
    with Server() as other:
        monkeypatch.setenv("HTTP_PROXY", other.origin)  # an environment must not send it elsewhere either
        assert fails(http, f"{other.origin}/v1/fine").kind == "denied"
        assert fails(http, server.origin.replace("127.0.0.1", "localhost") + "/v1/fine").kind == "denied"
        assert "secret" not in str(fails(http, "/redirect"))
        assert not other.seen
    get(Http(f"{server.origin}/v1"))
    assert "authorization" not in server.seen[-1]


def test_a_key_that_was_copied_badly_is_mended_or_said_but_never_shown(server: Server) -> None:
    get(Http(f"{server.origin}/v1", api_key=" secret\r\n"))
    assert server.seen[-1]["authorization"] == "Bearer secret"
    for key in ("sec\nret", "sec ret", "secr\u00e9t"):
        with pytest.raises(ModelError) as caught:
            Http(f"{server.origin}/v1", api_key=key)
        assert "sec" not in str(caught.value) and caught.value.mend


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MINE"):
        monkeypatch.delenv(name, raising=False)
    assert api_key("https://api.openai.com/v1", "MINE") is None
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert api_key("https://api.openai.com/v1", "MINE") == "theirs"
    for foreign in (
        "http://10.0.0.1/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
    ):
        assert api_key(foreign, "MINE") is None
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gateway:4000/v1")
    assert api_key("http://gateway:4000/v1") == "theirs"
    monkeypatch.setenv("MINE", "mine")
    assert api_key("http://10.0.0.1/v1", "MINE") == "mine" == api_key("https://api.openai.com/v1", "MINE")


@pytest.mark.parametrize("url", [
    "", "a:8000", "ftp://a", "http://", "http://a?b=1", "http://a#b", "http://a:x", "http://a:99999", "http://[::1",
    "http://me:secret@a", "http://me:secret@a:99999",
])  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ModelError) as caught:
        Http(url)
    assert "secret" not in str(caught.value) and caught.value.mend and caught.value.exit_code == ExitCode.MODEL


# -- what an answer means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "kind"), [
    (429, "busy"), (503, "busy"), (500, "failed"), (502, "failed"), (408, "failed"), (504, "timeout"), (524, "timeout"),
    (400, "rejected"), (413, "rejected"), (422, "rejected"), (409, "rejected"),
    (401, "denied"), (403, "denied"), (404, "denied"), (405, "denied"), (307, "denied"),
])  # fmt: skip
def test_every_status_has_a_kind(status: int, kind: str) -> None:
    error = status_error("host:1", answer(status, '{"detail": "so\\nthere"}'))
    assert (error.kind, error.status) == (kind, status)
    assert error.problem == f"host:1 answered {status}: so there" and "\n" not in str(error)


def test_only_a_busy_server_says_when_to_come_back() -> None:
    assert status_error("h", answer(429, retry_after="3")).retry_after == 3
    assert status_error("h", answer(500, retry_after="3")).retry_after is None


@pytest.mark.parametrize(("value", "seconds"), [
    ("0", 0), ("7", 7), ("1.5", 1.5), (" 7 ", 7), ("-5", 0), ("99999", remote.LONGEST_WAIT),
    ("inf", remote.LONGEST_WAIT), ("nan", None), ("", None), ("soon", None),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Oct", None),
])  # fmt: skip
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(answer(429, retry_after=value)) == seconds


def test_retry_after_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = retry_after(answer(429, retry_after=later))
    assert found is not None and 25 < found <= 30
    unzoned = format_datetime(datetime.now(UTC).replace(tzinfo=None))  # "-0000"
    assert retry_after(answer(429, retry_after=unzoned)) is None


@pytest.mark.parametrize(("body", "text"), [
    ({"error": {"message": "no"}}, "no"), ({"error": "no"}, "no"), ({"detail": "no"}, "no"), ({"message": "no"}, "no"),
    ({"detail": [{"loc": ["body", "n"], "msg": "no"}]}, "no"), ({"detail": []}, ""), ({}, ""), ([], ""), (7, ""),
    ({"error": {"error": {"error": {"error": {"message": "deep"}}}}}, ""),
    ({"error": "a\n  b" + "c" * 999}, "a b" + "c" * 297),
])  # fmt: skip
def test_what_a_body_says(body: Any, text: str) -> None:
    assert said(body) == text


def test_a_page_of_html_is_not_repeated() -> None:
    error = status_error("h", answer(502, "<html><body>" + "x" * 5000))
    assert str(error) == "h answered 502; look into the server's log"
    assert status_error("h", answer(502, "upstream\n gone")).problem.endswith("502: upstream gone")


@pytest.mark.parametrize(("content", "kind", "words"), [
    ("<!doctype html>", "garbage", "web page"), ('{"a": [1, 2', "garbage", "not JSON"), ("", "garbage", "not JSON"),
    ("[1]", "garbage", "no object"), ('{"error": {"message": "oh"}}', "failed", "oh"),
    (b"\xff\xfe{", "garbage", "not JSON"),
])  # fmt: skip
def test_answers_that_are_no_answers(content: str | bytes, kind: str, words: str) -> None:
    with pytest.raises(EndpointError, match=words) as caught:
        read_json("h", answer(200, content))
    assert caught.value.kind == kind
    assert read_json("h", answer(200, '{"error": null, "a": 1}'))["a"] == 1


@given(st.binary(max_size=60), st.integers(200, 599), st.text(max_size=30))
def test_no_answer_breaks_the_reading_of_it(content: bytes, status: int, header: str) -> None:
    response = httpx.Response(status, content=content, headers=[(b"retry-after", header.encode("utf-8"))])
    error = status_error("h", response)
    assert error.mend and "\n" not in str(error)
    with suppress(EndpointError):  # and nothing else
        assert isinstance(read_json("h", response), dict)
