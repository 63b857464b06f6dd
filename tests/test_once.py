"""Work that is asked for twice and done once, in virtual time where it is about time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from premeditate.serving.once import Answers, OtherRequest
from support import virtual_time


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
            assert await answers.get(word, word, work(word), 0) == word.encode() * 10
        assert await answers.get("d", "d", work("d"), 0) == b"d" * 10 and made == ["a", "b", "c", "d"]
        await answers.get("a", "a", work("a"), 0)  # forgotten: it was the oldest
        assert made.count("a") == 2
        with pytest.raises(OtherRequest):
            await answers.get("a", "other", work("a"), 0)
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await answers.get("bad", "bad", work("bad"), 0)
        assert made.count("bad") == 2
        heavy = Answers(bytes=15)
        for word in ("a", "b", "a"):
            await heavy.get(word, word, work(word), 0)
        await heavy.get("b", "b", work("b"), 0)
        assert made.count("b") == 3

    asyncio.run(play())


class Work:
    """Takes so many seconds, and says when it began and what became of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.events: list[tuple[float, str]] = []

    async def __call__(self) -> bytes:
        clock = asyncio.get_running_loop().time
        self.events.append((clock(), "begun"))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.events.append((clock(), "given up"))
            raise
        self.events.append((clock(), "done"))
        return b"answer"


async def ask_for(answers: Answers, work: Work, patience: float, back: float) -> bytes | None:
    try:
        return await asyncio.wait_for(answers.get("k", "", work, back), patience)
    except TimeoutError:
        return None


def test_work_that_nobody_waits_for_ends_when_nobody_comes_back() -> None:
    async def play() -> None:
        answers, work = Answers(), Work(100)
        assert await ask_for(answers, work, patience=10, back=5) is None
        await asyncio.sleep(20)
        assert work.events == [(0, "begun"), (15, "given up")]
        assert await ask_for(answers, work, patience=200, back=0) == b"answer"  # done anew
        assert work.events[2:] == [(30, "begun"), (130, "done")]

    virtual_time.run(play())


def test_who_comes_back_in_time_joins_and_only_the_last_one_to_leave_ends_the_work() -> None:
    async def play() -> None:
        answers, work = Answers(), Work(100)
        assert await ask_for(answers, work, patience=10, back=5) is None
        await asyncio.sleep(4)
        again = [ask_for(answers, work, patience, back=0) for patience in (20, 40, 70)]
        assert await asyncio.gather(*again) == [None, None, None]  # they leave at 34, 54 and 84
        await asyncio.sleep(1)
        assert work.events == [(0, "begun"), (84, "given up")]

    virtual_time.run(play())


def test_what_is_done_while_nobody_waits_is_kept() -> None:
    async def play() -> None:
        answers, work = Answers(), Work(12)
        assert await ask_for(answers, work, patience=10, back=5) is None
        await asyncio.sleep(50)
        assert await ask_for(answers, work, patience=1, back=0) == b"answer"
        assert work.events == [(0, "begun"), (12, "done")]

    virtual_time.run(play())
