"""The reward panel with rewards that hang, raise, block their thread or answer nonsense."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from premeditate.rewards.base import Reward, RewardError, Sample
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.panel import TRIES, Entry
from premeditate.trace import Verdict
from support.rewards import WAIT, Plain, function, k_of, panel_of, samples


@pytest.mark.parametrize("kind", ["async", "plain", "blocking"])
def test_a_reward_that_hangs_is_left_behind_and_the_others_are_not(kind: str) -> None:
    """What is "blocking" is an async function that holds its event loop, as one does that calls time.sleep."""
    stop, calls = threading.Event(), []

    async def waits(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        if len(calls) == 1:
            await asyncio.Event().wait()
        return [1.0] * len(ss)

    def sits(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        if len(calls) == 1:
            stop.wait(WAIT)
        return [1.0] * len(ss)

    async def blocks(ss: Sequence[Sample]) -> list[float]:
        return sits(ss)

    bad = {"async": waits, "plain": sits, "blocking": blocks}[kind]
    good = function(lambda ss: [2.0] * len(ss))
    with panel_of(Entry(function(bad), timeout=0.05, name="bad"), Entry(good, name="good")) as panel:
        scores = panel.score(samples(3))
        assert scores.coverage == {"bad": 0.0, "good": 1.0}
        assert np.isnan(scores.matrix[:, 0]).all() and (scores.matrix[:, 1] == 2).all()
        assert scores.statuses[0] == ("unavailable", "scored")
        assert len(scores.reasons) == 3 and "bad: timed out after 0.05 s" in scores.reasons[0]
        assert "raise its timeout" in scores.reasons[0]
        assert ("blocks its thread" in scores.reasons[0]) == (kind == "blocking")
        again = panel.score(samples(2))  # what hung does not stand in the way of the next call
        assert again.coverage == {"bad": 1.0, "good": 1.0}
    stop.set()
    assert calls == [3, 2]


def test_a_call_that_waits_for_its_turn_is_not_late() -> None:
    """Two calls of 0.6 s, one after the other, and 1 s for each: together they take longer."""

    def slow(ss: Sequence[Sample]) -> list[float]:
        time.sleep(0.6)
        return [1.0] * len(ss)

    with panel_of(Entry(function(slow), timeout=1.0)) as panel:
        waiting = [panel.submit(samples(1)) for _ in range(2)]
        assert all(p.result().coverage == {"f": 1.0} for p in waiting)


def test_a_reward_that_raises_leaves_its_samples_without_a_score_and_says_why() -> None:
    calls = []

    def broken(ss: Sequence[Sample]) -> list[float]:
        calls.append(len(ss))
        raise OSError("no judge at\nport 1")

    with panel_of(Entry(function(broken), name="judge"), Entry(function(lambda ss: [1] * len(ss)), name="ok")) as panel:
        scores = panel.score(samples(20))
    assert scores.coverage == {"judge": 0.0, "ok": 1.0} and np.isnan(scores.matrix[:, 0]).all()
    assert scores.reasons == ("judge: OSError: no judge at port 1",) * 20
    assert calls == [20] + [1] * TRIES  # it is not asked about all of them again


def test_one_sample_that_a_reward_cannot_bear_does_not_cost_the_others_their_score() -> None:
    def picky(ss: Sequence[Sample]) -> list[float]:
        return [1 / (k_of(s) - 5) for s in ss]

    with panel_of(function(picky)) as panel:
        scores = panel.score(samples(8))
    assert np.isnan(scores.matrix[:, 0]).tolist() == [k == 5 for k in range(8)]
    assert scores.matrix[7, 0] == 0.5 and scores.reasons == ("f: ZeroDivisionError: division by zero",)


def test_a_task_that_a_reward_cannot_bear_does_not_cost_the_other_groups_their_score() -> None:
    calls = []

    def picky(ss: Sequence[Sample]) -> list[float]:
        calls.append([k_of(s) for s in ss])
        if any(s.group == "g0" for s in ss):
            raise KeyError("mask")
        return [1.0] * len(ss)

    with panel_of(function(picky)) as panel:
        scores = panel.score(samples(12, group_size=4))
    assert np.isnan(scores.matrix[:, 0]).tolist() == [k < 4 for k in range(12)]
    assert calls[1:] == [[0], *([k] for k in range(4, 12)), [1], [2], [3]]  # the bad group's others come last


@pytest.mark.parametrize(("group_size", "asked"), [(20, [0, 1, 2]), (10, [0, 10, 1]), (4, [0, 4, 8])])
def test_a_reward_that_fails_for_every_group_is_not_asked_about_all_samples(group_size: int, asked: list[int]) -> None:
    calls = []

    def broken(ss: Sequence[Sample]) -> list[float]:
        calls.append([k_of(s) for s in ss])
        raise OSError("no judge")

    with panel_of(function(broken)) as panel:
        assert panel.score(samples(20, group_size)).coverage == {"f": 0.0}
        assert calls[1:] == [[k] for k in asked]
        del calls[:]
        alone = [replace(s, group="") for s in samples(20)]
        assert panel.score(alone).coverage == {"f": 0.0} and calls[1:] == [[0], [1], [2]]


def test_the_second_tries_of_a_groupwise_reward_are_whole_groups() -> None:
    calls = []

    def picky(ss: Sequence[Sample]) -> list[float]:
        calls.append([k_of(s) for s in ss])
        return [1 / (k_of(s) - 3) for s in ss]

    with panel_of(function(picky, groupwise=True)) as panel:
        scores = panel.score(samples(6, group_size=2))
    assert calls == [[0, 1, 2, 3, 4, 5], [0, 1], [2, 3], [4, 5]]
    assert np.isnan(scores.matrix[:, 0]).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("exit_", [SystemExit(1), KeyboardInterrupt(), StopIteration(3)])
def test_a_reward_that_wants_to_end_the_program_only_ends_its_call(exit_: BaseException) -> None:
    def plain(ss: Sequence[Sample]) -> list[float]:
        raise exit_

    async def asynchronous(ss: Sequence[Sample]) -> list[float]:
        raise exit_

    with panel_of(Entry(function(plain), name="a"), Entry(function(asynchronous), name="b")) as panel:
        for _ in range(2):
            scores = panel.score(samples(1))
            assert scores.coverage == {"a": 0.0, "b": 0.0}
            assert all(type(exit_).__name__ in reason for reason in scores.reasons)


class Wrong(Plain):
    def __init__(self, returned: Callable[[Sequence[Sample]], Any]) -> None:
        super().__init__(lambda s: {})
        self.returned = returned

    async def score(self, samples: Sequence[Sample]) -> Any:
        return self.returned(samples)


def scored(**scores: float) -> Verdict:
    return Verdict(status="scored", scores=scores)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (FunctionReward(lambda ss: [1.0]), "returned 1 values for 3 samples"),
        (FunctionReward(lambda ss: [1.0] * 4), "returned 4 values for 3 samples"),
        (FunctionReward(lambda ss: 1.0), "returned float instead of a list"),
        (FunctionReward(lambda ss: "abc"), "returned str instead of a list"),
        (FunctionReward(lambda ss: {"score": 1}), "returned dict instead of a list"),
        (FunctionReward(lambda ss: ["0.5"] * 3), "returned '0.5' (str) as score"),
        (FunctionReward(lambda ss: [math.inf] * 3), "returned 'inf' (float) as score"),
        (FunctionReward(lambda ss: [-math.inf] * 3), "returned '-inf'"),
        (FunctionReward(lambda ss: [1j] * 3), "complex"),
        (FunctionReward(lambda ss: [np.zeros(2)] * 3), "ndarray"),
        (FunctionReward(lambda ss: [{"a": 1}] * 3), "returned the dimension 'a', which it did not announce"),
        (FunctionReward(lambda ss: [1] * 3, dimensions=("a", "b")), "one value for its dimensions a, b"),
        (Wrong(lambda ss: [scored(low=1.0, high=1.0)]), "returned 1 verdicts for 3 samples"),
        (Wrong(lambda ss: [1.0] * 3), "returned no list of verdicts"),
        (Wrong(lambda ss: [scored(other=1.0)] * 3), "scored 'other', which it did not announce"),
        (Wrong(lambda ss: [scored(low=math.inf)] * 3), "gave inf as low"),
    ],
)
def test_a_reward_that_breaks_its_contract_ends_the_run_with_the_mend(reward: Reward, said: str) -> None:
    other = function(lambda ss: [1.0] * len(ss), name="other")
    with panel_of(reward, Entry(other, name="other")) as panel:
        with pytest.raises(RewardError) as caught:
            panel.score(samples(3))
        assert said in str(caught.value) and caught.value.mend and "\n" not in str(caught.value)
        assert panel.submit([]).result().matrix.shape[0] == 0  # the panel itself goes on


def test_a_score_method_that_is_not_async_is_an_error() -> None:
    class Old(Plain):
        def score(self, samples: Sequence[Sample]) -> Any:
            return [scored(low=1.0, high=1.0)] * len(samples)

    with panel_of(Old(lambda s: {})) as panel, pytest.raises(RewardError, match="write async def score"):
        panel.score(samples(2))
