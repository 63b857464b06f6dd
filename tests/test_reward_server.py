"""Rewards behind HTTP: a real server on loopback, its client, and what goes wrong between the two."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from premeditate.errors import ModelError
from premeditate.rewards.base import Reward, RewardError, Sample
from premeditate.rewards.panel import Entry, Panel
from premeditate.rewards.remote import RemoteReward
from premeditate.rewards.specs import load_reward
from premeditate.serving.door import Exposed, check_exposure
from premeditate.serving.once import Answers, OtherRequest
from premeditate.serving.rewards import Limits, reward_app, serve
from premeditate.trace import Answer, Checklist, ChecklistItem, Task, Verdict
from support.command import premeditate
from support.loopback import Loopback
from support.rewards import WAIT, Plain, function, k_of, noise, panel_of, sample, samples

ITEM = ChecklistItem(question="is it red?", dimension="follow")


class Server(Loopback):
    """A panel of these rewards, behind HTTP."""

    def __init__(self, *entries: Entry | Reward, key: str | None = None, **limits: Any) -> None:
        super().__init__()
        self.panel = Panel([e if isinstance(e, Entry) else Entry(e) for e in entries])
        self.app = reward_app(self.panel, key=key, limits=Limits(**limits))
        self._server.config.app = self.app

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.panel.close()

    def client(self, options: str = "", **more: Any) -> RemoteReward:
        return RemoteReward.load(self.origin + options, **{"wait": 0, **more})

    def post(self, body: Any = None, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        with httpx.Client(trust_env=False) as client:
            return client.post(f"{self.origin}/score", json=body, headers=headers, timeout=WAIT, **more)

    def health(self, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.origin}/health", headers=headers, trust_env=False)


class Judge:
    """A reward that answers checklists and says whom it saw."""

    name = "judge"
    dimensions = ("follow", "keep")

    def __init__(self) -> None:
        self.seen: list[Sample] = []

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.seen += samples
        found = []
        for s in samples:
            match s.task.meta.get("k", 0) % 3:
                case 0:
                    answer = Answer(item=ITEM, status="scored", yes=True, p_yes=0.75, evidence="it is red")
                    verdict = Verdict(status="scored", answers=(answer,), scores={"follow": 0.75, "keep": 1.0})
                case 1:
                    verdict = Verdict(status="refused", reason="I would rather not", scores={"keep": 0.5})
                case _:
                    verdict = Verdict(status="unparsable", reason="mumbled")
            found.append(verdict.model_copy(update={"verifier": "tiny", "seconds": 0.25, "tokens": 7}))
        return found


def b64(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


RED = Image.new("RGB", (8, 6), "red")
NOISE = noise(24, 16)


def ask(*edits: Any, **more: Any) -> dict[str, Any]:
    return {
        "images": [b64(RED)],
        "samples": [{"source": 0, "edit": edit, "instruction": "make it blue", **more} for edit in edits or (0,)],
    }


def counted() -> tuple[Reward, list[int]]:
    """A reward of each sample's k, and how many samples each call had."""
    calls: list[int] = []

    def count(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        return [float(s.task.meta.get("k", 0)) for s in ss]

    return function(count, name="count", concurrent=True), calls


def counting() -> Server:
    """A server that scores k."""
    return Server(counted()[0])


def score(reward: Reward, given: Sequence[Sample]) -> list[Verdict]:
    async def both() -> list[Verdict]:
        try:
            return list(await reward.score(given))
        finally:
            await reward.aclose()  # type: ignore[attr-defined]

    return asyncio.run(both())


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


def test_a_client_divides_what_is_too_heavy_together() -> None:
    reward, calls = counted()
    one = len(json.dumps(ask(b64(NOISE)))) + 400
    with Server(reward, bytes=2 * one) as server:
        given = [sample(NOISE, noise(24, 16, seed), k=seed) for seed in range(5)]
        assert [v.scores["score"] for v in score(server.client(), given)] == [0, 1, 2, 3, 4]
        assert sum(calls) == 5 and max(calls) < 5
        heavy = [sample(NOISE, noise(240, 160), k=9), sample(RED, RED, k=1)]
        lost, kept = score(server.client(), heavy)
        assert lost.status == "unavailable" and "413" in lost.reason and kept.scores == {"score": 1}


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


def test_a_client_without_a_key_that_leaves_ends_the_work() -> None:
    ended = threading.Event()

    async def slow(ss: Sequence[Sample]) -> list[float]:
        try:
            await asyncio.sleep(WAIT)
        finally:
            ended.set()
        return [1.0]

    with Server(function(slow, name="slow")) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.origin}/score", json=ask(), timeout=0.5, trust_env=False)
        assert ended.wait(WAIT)


def test_answers_are_kept_within_bounds_and_failures_not_at_all() -> None:
    async def play() -> None:
        made: list[str] = []

        def work(word: str) -> Callable[[], Any]:
            async def do() -> bytes:
                made.append(word)
                await asyncio.sleep(0)
                if word == "bad":
                    raise ValueError("no")
                return word.encode() * 10

            return do

        answers = Answers(most=3, bytes=100)
        for word in ("a", "b", "c", "d"):
            assert await answers.get(word, word, work(word)) == word.encode() * 10
        assert await answers.get("d", "d", work("d")) == b"d" * 10 and made == ["a", "b", "c", "d"]
        await answers.get("a", "a", work("a"))  # forgotten: it was the oldest
        assert made.count("a") == 2
        with pytest.raises(OtherRequest):
            await answers.get("a", "other", work("a"))
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await answers.get("bad", "bad", work("bad"))
        assert made.count("bad") == 2
        heavy = Answers(bytes=15)
        for word in ("a", "b", "a"):
            await heavy.get(word, word, work(word))
        await heavy.get("b", "b", work("b"))
        assert made.count("b") == 3

    asyncio.run(play())


# -- when it goes wrong -----------------------------------------------------------------------------------------------


class Faulty(Loopback):
    """A server that breaks first, as it is told, and then answers."""

    def __init__(self, *faults: str, results: Any = None, dimensions: tuple[str, ...] = ("score",)) -> None:
        super().__init__()
        self.faults, self.keys = list(faults), list[str]()
        self.results, self.dimensions = results, dimensions
        self.app.get("/health")(lambda: {
            "status": "ok", "protocol": 1, "name": "faulty", "dimensions": ["score"], "items": 8, "bytes": 10**6,
        })  # fmt: skip
        self.app.post("/score")(self._score)

    async def _score(self, request: Request) -> Response:
        body = await request.json()
        self.keys.append(request.headers["idempotency-key"])
        match self.faults.pop(0) if self.faults else None:
            case "503":
                return JSONResponse({"detail": "later"}, 503, headers={"Retry-After": "0"})
            case "500":
                return JSONResponse({"detail": "CUDA out of memory"}, 500)
            case "422":
                return JSONResponse({"detail": "no"}, 422)
            case "html":
                return StreamingResponse(iter(["<html>"]))
            case "reset":

                async def part() -> Any:
                    yield b"{"
                    raise ConnectionResetError

                return StreamingResponse(part(), headers={"Content-Length": "1000"})
        good = [{"status": "scored", "scores": {"score": 0.5}} for _ in body["samples"]]
        text = json.dumps({"dimensions": self.dimensions, "results": good if self.results is None else self.results})
        return StreamingResponse(iter([text]), media_type="application/json")


def faulty_score(server: Faulty, n: int = 2, **options: Any) -> list[Verdict]:
    return score(RemoteReward.load(server.origin, wait=0, **options), samples(n))


@pytest.mark.parametrize("faults", [["500", "reset"], ["html"], ["503"] * 5, []])
def test_what_breaks_is_asked_again_with_the_same_key(faults: list[str]) -> None:
    with Faulty(*faults) as server:
        assert [v.scores for v in faulty_score(server)] == [{"score": 0.5}] * 2
        assert len(server.keys) == len(faults) + 1 and len(set(server.keys)) == 1


@pytest.mark.parametrize(
    ("faults", "calls", "said"),
    [(["500"] * 3, 3, "CUDA out of memory"), (["reset"] * 3, 3, "broke off"), (["422"], 1, "422: no")],
)
def test_what_stays_broken_is_unavailable_and_never_0(faults: list[str], calls: int, said: str) -> None:
    with Faulty(*faults) as server:
        for verdict in faulty_score(server):
            assert verdict.status == "unavailable" and verdict.scores == {} and said in verdict.reason
        assert len(server.keys) == calls


@pytest.mark.parametrize(
    "results",
    [
        [{"status": "scored", "scores": {"score": 0.5}}],
        [{"status": "fine", "scores": {}}] * 2,
        [{"status": "scored", "scores": {"other": 0.5}}] * 2,
        [{"status": "scored", "scores": {"score": math.inf}}] * 2,
        [{"status": "scored", "scores": {"score": "high"}}] * 2,
        "none",
    ],
)
def test_answers_that_are_none_are_no_scores(results: Any) -> None:
    with Faulty(results=results) as server:
        assert {v.status for v in faulty_score(server, tries=1)} == {"unavailable"}


def test_a_server_that_changes_its_rewards_ends_the_run() -> None:
    with Faulty(dimensions=("score", "more")) as server:
        with pytest.raises(RewardError, match="now scores score, more, not score"):
            faulty_score(server)


def test_a_busy_server_is_asked_until_the_time_is_up() -> None:
    with Faulty(*["503"] * 10_000) as server:
        verdicts = faulty_score(server, timeout=0.5)
        assert verdicts[0].status == "unavailable" and "503" in verdicts[0].reason and len(server.keys) > 3


def test_two_servers_share_the_work_and_one_may_die() -> None:
    first, second = counted(), counted()
    with Server(first[0]) as one, Server(second[0]) as two:
        client = RemoteReward.load(f"{one.origin},{two.origin}", batch=1, wait=0)
        assert [v.scores["score"] for v in score(client, samples(6))] == [0, 1, 2, 3, 4, 5]
        assert sum(first[1]) == sum(second[1]) == 3
        two._server.should_exit = two._server.force_exit = True
        two._thread.join(WAIT)
        assert {v.status for v in score(client, samples(6))} == {"scored"}


def test_an_overloaded_server_says_come_back() -> None:
    go = threading.Event()

    def slow(ss: Sequence[Sample]) -> list[float]:
        assert go.wait(WAIT)
        return [1.0] * len(ss)

    with (
        Server(function(slow, name="s", concurrent=True), capacity=1, queue=1) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(server.post, ask()) for _ in range(2)]
        while server.health().json()["in_flight"] < 2:
            pass
        turned = server.post(ask(), {"Idempotency-Key": "k"})
        assert turned.status_code == 503 and turned.headers["retry-after"] == "1"
        go.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert server.post(ask(), {"Idempotency-Key": "k"}).status_code == 200  # the refusal is not remembered


def test_what_a_reward_does_wrong_is_said() -> None:
    broken = function(lambda ss: [1.0], name="broken")
    slow = function(lambda ss: threading.Event().wait(WAIT), name="slow")
    with Server(broken) as server:
        answer = server.post(ask(0, 0))
        assert answer.status_code == 500 and "1 values for 2 samples" in answer.text
    with Server(Entry(slow, timeout=0.2)) as server:
        result = server.post(ask()).json()["results"][0]
        assert result["status"] == "unavailable" and "timed out" in result["reason"] and result["scores"] == {}
    with Server(Entry(slow), seconds=0.2) as server:
        assert server.post(ask()).status_code == 504


def _mortal(pipe: Any) -> None:
    """A server in a process of its own, which dies at its first sample as a machine does."""
    with Server(function(lambda ss: os._exit(1), name="mortal")) as server:
        pipe.send(server.origin)
        threading.Event().wait(60)


def test_a_server_that_dies_during_the_call_leaves_no_scores() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_mortal, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(120)
        client = RemoteReward.load(ours.recv(), wait=0)
        with panel_of(client) as panel:
            scores = panel.score(samples(3))
        process.join(WAIT)
        assert process.exitcode == 1
    finally:
        process.kill()
    assert np.isnan(scores.matrix).all() and scores.coverage == {"mortal": 0.0}
    assert {row[0].status for row in scores.verdicts} == {"unavailable"}


# -- how it is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("openai+http://127.0.0.1:9", "no reward dialect"),
        ("http://127.0.0.1:9#m", "no models"),
        ("http://127.0.0.1:9?steps=3", "no option 'steps'"),
        ("http://127.0.0.1:9?batch=0", "batch is 0"),
        ("http://127.0.0.1:9?timeout=0", "timeout is 0"),
        ("http://u:p@127.0.0.1:9", "user or password"),
    ],
)
def test_addresses_that_are_refused(spec: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        RemoteReward.load(spec, wait=0)


def test_what_is_no_reward_server_is_told() -> None:
    class Other(Loopback):
        def __init__(self, body: Any) -> None:
            super().__init__()
            self.app.get("/health")(lambda: body)

    about = {"protocol": 2, "name": "x", "dimensions": ["a"], "items": 1, "bytes": 1}
    for body, said in (({"model": "x"}, "is no reward server"), (about, "version 2 of the protocol")):
        with Other(body) as server, pytest.raises(ModelError, match=said):
            RemoteReward.load(server.origin, wait=0)


def test_a_server_may_start_later() -> None:
    server = counting()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server._server.config.port = port
    timer = threading.Timer(0.3, server.__enter__)
    timer.start()
    try:
        assert RemoteReward.load(f"http://127.0.0.1:{port}", wait=60).dimensions == ("score",)
    finally:
        timer.join()
        server.__exit__()


def test_a_reward_is_opened_where_an_event_loop_runs() -> None:
    async def inside(spec: str) -> tuple[str, ...]:
        return RemoteReward.load(spec, wait=0).dimensions

    with counting() as server:
        assert asyncio.run(inside(server.origin)) == ("score",)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "premeditate.serving.rewards.serve", lambda app, host, port, key: served.append((host, port, key))
    )
    done = premeditate("rewards", "serve", "exact", "preservation", "--port", "8123")
    assert done.code == 0 and "exact.follow" in done.err and "http://127.0.0.1:8123" in done.err
    recipe = tmp_path / "r.yaml"
    recipe.write_text("rewards:\n  - {use: exact, name: truth}\n")
    monkeypatch.setenv("PREMEDITATE_REWARD_KEY", "k3y\n")
    done = premeditate("rewards", "serve", "--recipe", recipe, "--host", "0.0.0.0")
    assert done.code == 0 and "truth.keep" in done.err and "k3y" not in done.err
    assert served == [("127.0.0.1", 8123, None), ("0.0.0.0", 8100, "k3y")]
    monkeypatch.delenv("PREMEDITATE_REWARD_KEY")
    for words, said in (
        ((), "say which rewards"),
        (("exact", "--recipe", recipe), "say which rewards"),
        (("exact", "--host", "0.0.0.0"), "set a key in PREMEDITATE_REWARD_KEY"),
    ):
        done = premeditate("rewards", "serve", *words)
        assert done.code == 2 and said in done.err
    assert premeditate("rewards", "serve", "exakt").code == 5
