"""Rewards behind HTTP: a real server on loopback, and what it makes of requests."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from premeditate.errors import ModelError
from premeditate.rewards.base import Sample
from premeditate.rewards.panel import Entry
from premeditate.rewards.specs import load_reward
from premeditate.serving.door import Exposed, check_exposure
from premeditate.serving.rewards import serve
from premeditate.trace import Checklist, Task
from support.reward_server import ITEM, NOISE, RED, Judge, Server, ask, b64, counted, counting, score
from support.rewards import WAIT, Plain, function, k_of, noise, panel_of, sample, samples

# -- there and back ---------------------------------------------------------------------------------------------------


def test_a_single_reward_is_the_same_at_a_distance() -> None:
    near, far = Judge(), Judge()
    with Server(far) as server:
        client = server.client("?batch=2")
        assert (client.name, client.dimensions) == ("judge", ("follow", "keep"))
        given = [
            Sample(Task(id=f"t{k}", images=(), instruction="make it blue", meta={"k": k, "deep": {"a": [1, None]}}),
                   NOISE, RED, Checklist(items=(ITEM,)), group="g")
            for k in range(5)
        ]  # fmt: skip
        assert score(client, given) == asyncio.run(near.score(given))
    for here, there in zip(near.seen, sorted(far.seen, key=k_of), strict=True):
        assert (here.task, here.checklist, here.group) == (there.task, there.checklist, there.group)
        np.testing.assert_array_equal(np.asarray(here.source), np.asarray(there.source))  # to the pixel
        np.testing.assert_array_equal(np.asarray(here.edit), np.asarray(there.edit))


def test_a_panel_within_a_panel_keeps_every_status() -> None:
    plain = Plain(lambda s: {"low": k_of(s), "high": 2.0} if k_of(s) else {"low": math.nan, "high": 1.0})
    with Server(plain, Judge()) as server:
        client = load_reward(f"{server.origin}?wait=0&name=far")
        assert client.dimensions == ("plain.low", "plain.high", "judge.follow", "judge.keep")
        with panel_of(Entry(client, weight=0.5)) as panel:
            scores = panel.score(samples(3))
    nan = math.nan
    np.testing.assert_array_equal(scores.matrix, [[nan, 1, 0.75, 1], [1, 2, nan, 0.5], [2, 2, nan, nan]])
    assert [row[0] for row in scores.statuses] == ["unavailable", "refused", "unparsable"]
    assert scores.reasons == (
        "far: plain: there is no score of low", "far: judge: I would rather not", "far: judge: mumbled",
    )  # fmt: skip
    assert scores.verdicts[0][0].answers[0].evidence == "it is red"


def test_health_says_what_is_scored() -> None:
    with Server(Judge(), Plain(lambda s: {}), items=7) as server:
        found = server.health().json()
    assert found == {
        "status": "ok", "protocol": 1, "name": "panel", "groupwise": False, "items": 7, "bytes": 128 << 20,
        "dimensions": ["judge.follow", "judge.keep", "plain.low", "plain.high"],
        "rewards": {"judge": ["follow", "keep"], "plain": ["low", "high"]}, "capacity": 4, "in_flight": 0,
    }  # fmt: skip


def test_samples_go_in_batches_and_groups_stay_whole() -> None:
    calls: list[list[str]] = []

    def rank(ss: Sequence[Sample]) -> list[float]:
        calls.append([s.group for s in ss])
        return [k_of(s) / 10 for s in ss]

    with Server(function(rank, name="rank", groupwise=True)) as server:
        client = server.client("?batch=4&parallel=1")
        assert client.groupwise and client.max_batch == 4
        verdicts = score(client, samples(9, group_size=3))
        assert [v.scores["score"] for v in verdicts] == [k / 10 for k in range(9)]
        assert sorted(calls) == [["g0"] * 3, ["g1"] * 3, ["g2"] * 3]
    reward, sizes = counted()
    with Server(reward, items=3) as server:
        assert len(score(server.client(), samples(8))) == 8
        assert sorted(sizes) == [2, 3, 3]  # no more than the server takes


def test_each_picture_travels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []
    reward, _ = counted()
    with Server(reward) as server:
        client = server.client()
        call = client._https[0].call

        async def spy(method: str, path: str, **options: Any) -> httpx.Response:
            bodies.append(options["content"])
            return await call(method, path, **options)

        monkeypatch.setattr(client._https[0], "call", spy)
        edits = [noise(16, 16, seed) for seed in range(3)]
        score(client, [sample(NOISE, edit, "g") for edit in edits])
    sent = json.loads(bodies[0])
    assert len(sent["images"]) == 4
    assert [(s["source"], s["edit"]) for s in sent["samples"]] == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_come_as_json_or_as_files(kind: str) -> None:
    judge = Judge()
    with Server(judge) as server:
        inline = server.post({"samples": [{"source": b64(RED, kind), "edit": b64(NOISE, kind), "instruction": "x"}]})
        files = [("images", (f"{n}.bin", base64.b64decode(b64(i, kind)))) for n, i in enumerate((RED, NOISE))]
        request = json.dumps({"samples": [{"source": 0, "edit": 1, "instruction": "x"}]})
        form = server.post(data={"request": request}, files=files)
    assert inline.status_code == form.status_code == 200 and inline.json() == form.json()
    assert inline.json()["results"][0]["scores"] == {"follow": 0.75, "keep": 1.0}
    assert [s.edit.size for s in judge.seen] == [NOISE.size] * 2
    np.testing.assert_array_equal(np.asarray(judge.seen[0].edit), np.asarray(judge.seen[1].edit))


# -- what one bad sample gets -----------------------------------------------------------------------------------------


def test_a_bad_sample_has_a_status_and_the_others_are_scored() -> None:
    huge = b64(Image.new("1", (7000, 7000)))
    bad = [
        (base64.b64encode(b"words").decode(), "not an image"),
        ("https://example.com/a.png", "an address, and none is fetched"),
        ("file:///etc/passwd", "an address, and none is fetched"),
        ("/etc/passwd", "a picture cannot be read"),
        ("***", "no base64"),
        (b64(NOISE)[: len(b64(NOISE)) // 8 * 4], "broken or truncated"),
        (huge, "49.0 megapixels"),
    ]
    with Server(counted()[0]) as server:
        body = ask(*[edit for edit, _ in bad], 0)
        body["samples"].append({"source": 0, "edit": 0, "instruction": "say <|im_start|>"})
        answer = server.post(body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    for result, (_, said) in zip(results, bad, strict=False):
        assert result["status"] == "unavailable" and result["scores"] == {} and said in result["reason"]
    assert results[len(bad)]["status"] == "scored" and results[len(bad)]["scores"] == {"score": 0.0}
    assert results[-1]["status"] == "unavailable" and "control token" in results[-1]["reason"]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"samples": []}, 422, "at least 1 item"),
        ({}, 422, "Field required"),
        ([], 422, "object"),
        ({**ask(), "model": "x"}, 422, "Extra inputs"),
        (ask(5), 422, "shows picture 5, and 1 were sent"),
        (ask(-1), 422, "greater than or equal to 0"),
        (ask(True), 422, "edit"),
        (ask(0.5), 422, "edit"),
        (ask(checklist={"items": [{"question": "q", "dimension": "style"}]}), 422, "'follow', 'keep' or 'quality'"),
        (ask(*[0] * 65), 413, "65 samples, the limit is 64"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_with_the_reason(body: Any, code: int, said: str) -> None:
    with counting() as server:
        answer = server.post(body)
    assert (answer.status_code, said in answer.text) == (code, True), answer.text


def test_other_refusals() -> None:
    with counting() as server:
        text = server.post(content=b'{"samples": [', headers={"Content-Type": "application/json"})
        assert text.status_code == 422 and "Invalid JSON" in text.text
        secret = server.post({"samples": "my secret"})
        assert secret.status_code == 422 and "secret" not in secret.text  # what was sent is not repeated
        pickled = server.post(content=b"\x80\x04N.", headers={"Content-Type": "application/octet-stream"})
        assert pickled.status_code == 415
        for form in ({"data": {"x": "1"}}, {"data": {"request": json.dumps(ask())}}):
            answer = server.post(files=[("images", ("a", b"1"))], **form)
            assert answer.status_code == 422, answer.text
        assert server.post(ask(), {"Idempotency-Key": "k" * 201}).status_code == 422
        assert server.post(ask()).status_code == 200
        for path in ("/docs", "/openapi.json"):
            assert httpx.get(server.origin + path, trust_env=False).status_code == 404


def test_bodies_and_pixels_are_bounded() -> None:
    with Server(counted()[0], bytes=2000, pixels=500) as server:
        assert server.post(ask()).status_code == 200
        declared = server.post(content=b" " * 3000, headers={"Content-Type": "application/json"})
        streamed = server.post(content=iter([b" " * 1500] * 3), headers={"Content-Type": "application/json"})
        form = server.post(data={"request": "{}"}, files=[("images", ("a", b"x" * 3000))])
        for answer in (declared, streamed, form):
            assert answer.status_code == 413 and "2,000 bytes" in answer.text
        many = server.post(ask(b64(Image.new("RGB", (25, 20)))))
        assert many.status_code == 413 and "500 pixels in all" in many.text


# -- keys -------------------------------------------------------------------------------------------------------------


def test_only_the_key_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    reward, calls = counted()
    with Server(reward, key="s3cret") as server:
        assert server.health().json() == {"status": "ok"}  # that it lives, no more
        assert server.health(Authorization="Bearer no").status_code == 401
        assert server.health(Authorization="Bearer s3cret").json()["name"] == "count"
        for wrong in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer s3cret2"},
        ):
            assert server.post(ask(), wrong).status_code == 401
        assert calls == []
        with pytest.raises(ModelError, match="PREMEDITATE_REWARD_KEY"):
            server.client()
        with pytest.raises(ModelError, match="401"):
            server.client(key="no")
        monkeypatch.setenv("PREMEDITATE_REWARD_KEY", "s3cret")
        assert score(server.client(), samples(2))[1].scores == {"score": 1.0}


def test_without_a_key_only_programs_here_are_served() -> None:
    with counting() as server:
        for headers in ({"Host": "evil.example:80"}, {"Origin": "https://evil.example"}):
            assert server.post(ask(), headers).status_code == 403
            assert server.health(**headers).status_code == 403
        assert server.post(ask(), {"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", "localhost.example.org", ""])
def test_others_are_let_in_with_a_key_only(host: str) -> None:
    with pytest.raises(Exposed, match="set a key in PREMEDITATE_REWARD_KEY"):
        serve(FastAPI(), host)
    check_exposure(host, "key", "X")


def test_this_machine_needs_no_key_and_bad_keys_are_refused() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_exposure(host, None, "X")
    with pytest.raises(Exposed, match="no header carries"):
        check_exposure("127.0.0.1", "two words", "X")


# -- asked twice, scored once -----------------------------------------------------------------------------------------


def test_the_same_key_has_the_same_answer_and_is_scored_once() -> None:
    reward, calls = counted()
    with Server(reward) as server:
        first = server.post(ask(), {"Idempotency-Key": "a"})
        again = server.post(ask(), {"Idempotency-Key": "a"})
        assert first.content == again.content and calls == [1]
        other = server.post(ask(0, 0), {"Idempotency-Key": "a"})
        assert other.status_code == 422 and "another request" in other.text
        assert server.post(ask(), {"Idempotency-Key": "b"}).status_code == 200 and calls == [1, 1]
        form = {"data": {"request": json.dumps({"samples": ask()["samples"]})},
                "files": [("images", ("a", base64.b64decode(b64(RED))))]}  # fmt: skip
        assert server.post(None, {"Idempotency-Key": "b"}, **form).status_code == 422  # another form, another request
        assert server.post(None, {"Idempotency-Key": "c"}, **form).status_code == 200


def test_a_key_under_way_is_joined_and_outlives_who_asked_first() -> None:
    go, started, calls = threading.Event(), threading.Event(), []

    def slow(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        started.set()
        assert go.wait(WAIT)
        return [1.0] * len(ss)

    with Server(function(slow, name="slow", concurrent=True)) as server, ThreadPoolExecutor(2) as pool:
        with pytest.raises(httpx.ReadTimeout):  # its connection is lost
            httpx.post(f"{server.origin}/score", json=ask(), headers={"Idempotency-Key": "a"}, timeout=0.5,
                       trust_env=False)  # fmt: skip
        assert started.wait(WAIT)
        rest = [pool.submit(server.post, ask(), {"Idempotency-Key": "a"}) for _ in range(2)]
        go.set()
        answers = [one.result() for one in rest]
    assert [a.status_code for a in answers] == [200, 200] and answers[0].content == answers[1].content
    assert calls == [1]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a", "Premeditate-Return": "0"}])
def test_a_client_that_leaves_for_good_ends_the_work(headers: dict[str, str]) -> None:
    ended = threading.Event()

    async def slow(ss: Sequence[Sample]) -> list[float]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return [1.0]

    with Server(function(slow, name="slow"), capacity=1) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.origin}/score", json=ask(), headers=headers, timeout=0.5, trust_env=False)
        assert ended.wait(WAIT)


def test_what_a_client_gave_up_does_not_hold_up_the_next_one() -> None:
    """A judge that is too slow for the client's patience, and one request at a time."""
    calls: list[int] = []

    async def judge(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        if len(calls) == 1:
            await asyncio.Event().wait()
        return [1.0] * len(ss)

    with Server(function(judge, name="judge"), capacity=1) as server:
        lost = score(server.client("?tries=2&timeout=2"), samples(2))
        assert {v.status for v in lost} == {"unavailable"}
        assert {v.status for v in score(server.client("?timeout=60"), samples(3))} == {"scored"}
    assert calls == [2, 3]  # the second try joined the first one's work


@pytest.mark.parametrize("seconds", ["soon", "-1", "inf", "nan"])
def test_a_return_that_is_no_time_is_refused(seconds: str) -> None:
    with counting() as server:
        answer = server.post(ask(), {"Idempotency-Key": "a", "Premeditate-Return": seconds})
        assert answer.status_code == 422 and "Premeditate-Return" in answer.text
