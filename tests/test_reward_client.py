"""Rewards on another machine: what the client does when servers break, and how it is asked for."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Request
from fastapi.responses import Response

from premeditate.errors import ModelError
from premeditate.rewards.base import RewardError, Sample
from premeditate.rewards.panel import Entry, Panel
from premeditate.rewards.remote import RemoteReward
from premeditate.rewards.specs import load_reward
from premeditate.serving.rewards import Limits
from premeditate.trace import Answer, Verdict
from support.command import premeditate
from support.loopback import Loopback
from support.reward_server import ITEM, Faulty, Server, ask, counted, counting, score
from support.rewards import WAIT, function, panel_of, samples

# -- when it goes wrong -----------------------------------------------------------------------------------------------


def faulty_score(server: Faulty, n: int = 2, **options: Any) -> list[Verdict]:
    return score(RemoteReward.load(server.origin, wait=0, **options), samples(n))


@pytest.mark.parametrize("faults", [["500", "reset"], ["html"], ["503"] * 5, []])
def test_what_breaks_is_asked_again_with_the_same_key(faults: list[str]) -> None:
    with Faulty(*faults) as server:
        assert [v.scores for v in faulty_score(server)] == [{"score": 0.5}] * 2
        assert len(server.keys) == len(faults) + 1 and len(set(server.keys)) == 1


def test_a_server_that_hangs_is_asked_again_in_the_time_that_is_left() -> None:
    with Faulty("hang") as server:
        assert {v.status for v in faulty_score(server, timeout=6)} == {"scored"}
        assert len(server.keys) == 2 and len(set(server.keys)) == 1
    with Faulty("hang", "hang") as server:
        verdicts = faulty_score(server, timeout=3, tries=2)
        assert verdicts[0].status == "unavailable" and "did not answer" in verdicts[0].reason and len(server.keys) == 2


@pytest.mark.parametrize("fault", ["hang", "503", "much later", "500", "html"])
def test_every_error_hands_the_turn_to_the_next_server(fault: str) -> None:
    with Faulty(*[fault] * 100) as first, Faulty() as second:
        client = RemoteReward.load(f"{first.origin},{second.origin}", wait=0, timeout=6)
        assert {v.status for v in score(client, samples(2))} == {"scored"}
        assert (len(first.keys), len(second.keys)) == (1, 1) and first.keys == second.keys


def test_a_server_is_told_whether_the_client_comes_again() -> None:
    with Faulty("500", "500", "500") as server:
        faulty_score(server)
        assert [seconds > 10 for seconds in server.returns] == [True, True, False] and server.returns[2] == 0
    with Faulty("500", "500") as first, Faulty("500") as second:
        score(RemoteReward.load(f"{first.origin},{second.origin}", wait=0, timeout=60), samples(2))
        assert first.returns[0] > 30 and first.returns[1:] == [0] and second.returns == [0]


def test_a_server_that_has_no_time_does_not_use_up_the_tries_of_another_one() -> None:
    with Faulty(*["503"] * 5) as first, Faulty("500", "500", "503") as second:
        client = RemoteReward.load(f"{first.origin},{second.origin}", wait=0, timeout=WAIT)
        assert {v.status for v in score(client, samples(2))} == {"scored"}


@pytest.mark.parametrize(
    ("faults", "calls", "said"),
    [(["500"] * 3, 3, "CUDA out of memory"), (["reset"] * 3, 3, "broke off"), (["422"] * 3, 3, "422: no")],
)
def test_what_stays_broken_is_unavailable_and_never_0(faults: list[str], calls: int, said: str) -> None:
    """What is refused is not sent again as it is, but its halves are sent."""
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


def test_what_a_newer_server_says_besides_is_ignored() -> None:
    item = {"question": "is it red?", "dimension": "follow", "weight": 2}
    answer = {"item": item, "status": "scored", "yes": True, "entropy": 0.1}
    result = {"status": "scored", "scores": {"score": 0.5}, "answers": [answer], "model": {"size": 7}}
    with Faulty(results=[result] * 2) as server:
        verdict, _ = faulty_score(server, tries=1)
    assert verdict == Verdict(
        status="scored", scores={"score": 0.5}, answers=(Answer(item=ITEM, status="scored", yes=True),)
    )


def test_a_server_that_changes_its_rewards_ends_the_run() -> None:
    with Faulty(dimensions=("score", "more")) as server:
        with pytest.raises(RewardError, match="now scores score, more, not score"):
            faulty_score(server)


def test_a_busy_server_is_asked_until_the_time_is_up() -> None:
    with Faulty(*["503"] * 10_000) as server:
        verdicts = faulty_score(server, timeout=2)
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


def test_a_reward_has_its_own_timeout_behind_a_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests at a time, one turn after the other, each longer than what a request has by default."""
    monkeypatch.setattr("premeditate.serving.rewards.SECONDS", 0.05)

    def slow(ss: Sequence[Sample]) -> list[float]:
        threading.Event().wait(0.2)
        return [1.0] * len(ss)

    with Server(Entry(function(slow), timeout=WAIT)) as server, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: server.post(ask()), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]


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


# -- how many calls at a time -----------------------------------------------------------------------------------------


class Meeting(Faulty):
    """Answers once so many calls are inside."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted, self.inside, self.most, self.full = wanted, 0, 0, asyncio.Event()

    async def _score(self, request: Request) -> Response:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == self.wanted:
            self.full.set()
        await asyncio.wait_for(self.full.wait(), WAIT)
        answer = await super()._score(request)
        self.inside -= 1
        return answer


@pytest.mark.parametrize("parallel", [1, 6])
def test_calls_at_a_time_are_what_the_option_says(parallel: int) -> None:
    with Meeting(parallel) as server, panel_of(load_reward(f"{server.origin}?batch=1&parallel={parallel}")) as panel:
        waiting = [panel.submit(samples(9)) for _ in range(2)]
        assert all(one.result().coverage == {"faulty": 1.0} for one in waiting)
    assert server.most == parallel and len(server.keys) == 18


def test_all_who_ask_one_client_share_its_calls() -> None:
    async def both(client: RemoteReward) -> None:
        await asyncio.gather(*(client.score(samples(3)) for _ in range(3)))
        await client.aclose()

    with Meeting(2) as server:
        client = RemoteReward.load(server.origin, wait=0, batch=1, parallel=2)
        for _ in range(2):  # each in an event loop of its own
            asyncio.run(both(client))
    assert server.most == 2


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

    def serve(app: Any, host: str, port: int, *, key: str | None, sockets: Any, ready: Callable[[], None]) -> None:
        served.append((host, port, key))
        ready()

    monkeypatch.setattr("premeditate.serving.rewards.serve", serve)
    monkeypatch.setattr("premeditate.serving.listening.reserve", lambda host, port: [])
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
    done = premeditate("rewards", "serve", "preservation", "preservation")
    assert done.code == 5 and "two rewards are called preservation" in done.err and "--recipe" in done.err
    recipe.write_text("rewards:\n  - {use: preservation}\n  - {use: preservation, name: again}\n")
    done = premeditate("rewards", "serve", "--recipe", recipe)  # as it was told
    assert done.code == 0 and "again.psnr" in done.err


def test_the_command_gives_a_recipe_s_rewards_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []

    def app(panel: Panel, *, limits: Limits | None = None, **options: Any) -> None:
        limits = limits or Limits()
        seconds.append(limits.seconds or panel.patience(limits.items, limits.capacity))

    monkeypatch.setattr("premeditate.serving.rewards.reward_app", app)
    monkeypatch.setattr("premeditate.serving.rewards.serve", lambda *given, **options: None)
    monkeypatch.setattr("premeditate.serving.listening.reserve", lambda host, port: [])
    recipe = tmp_path / "r.yaml"
    recipe.write_text("rewards:\n  - {use: exact, timeout: 1800}\n  - {use: preservation, timeout: 5}\n")
    assert premeditate("rewards", "serve", "--recipe", recipe).code == 0
    assert premeditate("rewards", "serve", "preservation", "--timeout", "5").code == 0
    assert seconds[0] > 1800 and 5 < seconds[1] < 600
