"""The reward panel: the matrix, what runs side by side, its end, and how it is put together."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from premeditate.errors import ModelError
from premeditate.rewards.base import Sample
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.panel import Entry, Panel, build_panel
from premeditate.trace import Verdict
from support.rewards import WAIT, Plain, function, k_of, panel_of, samples

# -- the matrix -------------------------------------------------------------------------------------------------------


def test_the_matrix_holds_every_dimension_in_the_order_of_the_samples() -> None:
    plain = Plain(lambda s: {"low": k_of(s), "high": 10.0 + k_of(s)})
    half = function(lambda ss: [k_of(s) / 2 for s in ss], name="half")
    with panel_of(Entry(plain, weight=0.5), Entry(half, weight=2.0, name="mine")) as panel:
        assert panel.names == ("plain.low", "plain.high", "mine.score")
        assert panel.weights == (0.5, 0.5, 2.0) and panel.rewards == ("plain", "mine")
        scores = panel.score(samples(5))
    assert scores.names == panel.names and scores.matrix.dtype == np.float64
    np.testing.assert_array_equal(scores.matrix, [[k, 10 + k, k / 2] for k in range(5)])
    assert scores.coverage == {"plain": 1.0, "mine": 1.0} and scores.reasons == ()
    assert set(scores.seconds) == {"plain", "mine"} and min(scores.seconds.values()) > 0
    assert scores.statuses == (("scored", "scored"),) * 5


def test_a_missing_score_is_nan_and_never_zero() -> None:
    partly = Plain(lambda s: {"low": 0.0} if k_of(s) else {"low": math.nan, "high": 1.0})
    none = function(lambda ss: [None, math.nan, 3], name="none")
    with panel_of(partly, none) as panel:
        scores = panel.score(samples(3))
    np.testing.assert_array_equal(scores.matrix, [[math.nan, 1, math.nan], [0, math.nan, math.nan], [0, math.nan, 3]])
    assert scores.coverage == {"plain": 0.0, "none": 1 / 3}
    assert [row[1] for row in scores.statuses] == ["unavailable", "unavailable", "scored"]
    assert sorted(scores.reasons) == ["none: the function gave no score"] * 2 + [
        "plain: there is no score of high",
        "plain: there is no score of high",
        "plain: there is no score of low",
    ]


def test_no_samples_make_an_empty_matrix_and_no_call() -> None:
    plain = Plain(lambda s: {})
    with panel_of(plain) as panel:
        scores = panel.score([])
    assert scores.matrix.shape == (0, 2) and plain.calls == [] and scores.statuses == ()
    assert math.isnan(scores.coverage["plain"])


# -- beside other work ------------------------------------------------------------------------------------------------


def test_submit_returns_at_once_and_scoring_overlaps_what_the_caller_does() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(ss: Sequence[Sample]) -> list[float]:
        begun.set()
        assert may_end.wait(WAIT)
        return [1.0] * len(ss)

    with panel_of(function(slow)) as panel:
        pending = panel.submit(samples(2))
        assert begun.wait(WAIT)  # it runs while this thread goes on
        assert not pending.done()
        may_end.set()
        assert pending.result().matrix.tolist() == [[1.0], [1.0]]
        assert pending.done()


def test_it_works_while_torch_keeps_the_main_thread_busy() -> None:
    torch = pytest.importorskip("torch")
    ended = threading.Event()

    async def judge(ss: Sequence[Sample]) -> list[float]:
        await asyncio.sleep(0.01)
        ended.set()
        return [1.0] * len(ss)

    with panel_of(function(judge)) as panel:
        pending = panel.submit(samples(1))
        x, until = torch.ones(64, 64), time.monotonic() + WAIT
        while not ended.is_set() and time.monotonic() < until:
            x = torch.tanh(x @ x)
        assert ended.is_set() and pending.result().matrix.tolist() == [[1.0]]


def test_rewards_run_side_by_side() -> None:
    """Each of the two waits for the other to have begun: one after the other they would never end."""
    meet = threading.Barrier(2)

    def one(ss: Sequence[Sample]) -> list[float]:
        meet.wait(WAIT)
        return [1.0] * len(ss)

    with panel_of(Entry(function(one), name="a"), Entry(function(one), name="b")) as panel:
        assert panel.score(samples(2)).coverage == {"a": 1.0, "b": 1.0}


def test_submissions_come_back_in_order_and_a_plain_function_is_called_once_at_a_time() -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def count(ss: Sequence[Sample]) -> list[int]:
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        time.sleep(0.002)
        with lock:
            inside -= 1
        return [k_of(s) for s in ss]

    every = samples(24)
    with panel_of(function(count)) as panel:
        waiting = [panel.submit(every[i : i + 4]) for i in range(0, 24, 4)]
        found = [pending.result().matrix[:, 0].tolist() for pending in waiting]
    assert [k for part in found for k in part] == list(range(24)) and most == 1


def test_an_async_reward_gets_several_calls_at_a_time_but_not_any_number() -> None:
    inside, most, full = 0, 0, asyncio.Event()

    async def judge(ss: Sequence[Sample]) -> list[int]:
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        if inside == 4:
            full.set()
        await asyncio.wait_for(full.wait(), WAIT)
        await asyncio.sleep(0)
        inside -= 1
        return [k_of(s) for s in ss]

    every = samples(8)
    with panel_of(function(judge)) as panel:
        waiting = [panel.submit([s]) for s in every]
        assert [p.result().matrix[0, 0] for p in waiting] == list(range(8))
    assert most == 4


def test_calls_are_cut_to_what_the_reward_takes_and_groups_stay_whole_where_they_are_judged_whole() -> None:
    plain = Plain(lambda s: {"low": 1, "high": k_of(s)})
    plain.max_batch = 4  # type: ignore[attr-defined]
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]  # three groups of three, mixed up
    mixed = [samples(9, group_size=3)[k] for k in order]
    with panel_of(plain) as panel:
        assert panel.score(mixed).matrix[:, 1].tolist() == order
        assert plain.calls == [order[:4], order[4:8], order[8:]]
        plain.calls.clear()
        plain.groupwise = True  # type: ignore[attr-defined]
        assert panel.score(mixed).matrix[:, 1].tolist() == order
    assert [sorted(call) for call in plain.calls] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_the_panel_knows_how_long_it_may_take() -> None:
    def patience(samples: int, submits: int, **attributes: Any) -> int:
        """In turns of a call."""
        entry = Entry(function(lambda ss: [1.0], **attributes), timeout=1800)
        with panel_of(entry, Entry(function(lambda ss: [1.0]), name="quick", timeout=1)) as panel:
            seconds = panel.patience(samples, submits)
        assert 0 < seconds % 1800 < 100
        return int(seconds // 1800)

    assert patience(64, 1) == 1 and patience(64, 4) == 4
    assert patience(64, 4, max_batch=16) == 16 and patience(65, 1, max_batch=16) == 5
    assert patience(64, 4, max_batch=16, concurrent=True) == 4
    # Groups of 5 in calls of 8: one in each.
    assert patience(64, 1, max_batch=8, groupwise=True) >= 13


# -- the end ----------------------------------------------------------------------------------------------------------


def test_closing_cancels_what_is_under_way() -> None:
    begun, cancelled, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow(Plain):
        async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

        async def aclose(self) -> None:
            closed.set()

    panel = Panel([Entry(Slow(lambda s: {}))])
    pending = panel.submit(samples(1))
    assert begun.wait(WAIT)
    panel.close()
    assert cancelled.wait(WAIT) and closed.wait(WAIT)
    with pytest.raises(RuntimeError, match="closed"):
        pending.result()
    with pytest.raises(RuntimeError, match="closed"):
        panel.submit(samples(1))
    panel.close()


def test_nobody_waits_for_a_cancelled_answer() -> None:
    cancelled = threading.Event()

    async def waits(ss: Sequence[Sample]) -> list[float]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return []

    begun = threading.Event()

    async def first(ss: Sequence[Sample]) -> list[float]:
        begun.set()
        return await waits(ss)

    with panel_of(function(first)) as panel:
        pending = panel.submit(samples(1))
        assert begun.wait(WAIT)
        pending.cancel()
        assert cancelled.wait(WAIT)


def test_threads_of_a_closed_panel_end() -> None:
    before = set(threading.enumerate())
    with panel_of(Plain(lambda s: {"low": 1, "high": 1}), function(lambda ss: [1] * len(ss))) as panel:
        panel.score(samples(2))
    assert {t.name for t in set(threading.enumerate()) - before} == set()


# -- how it is put together -------------------------------------------------------------------------------------------


def told(use: str, **more: Any) -> Any:
    return SimpleNamespace(**{"use": use, "weight": 1.0, "timeout": 5.0, "name": "", **more})


def test_a_panel_is_built_from_what_a_recipe_says() -> None:
    recipe = pytest.importorskip("premeditate.training.recipe")
    rewards = (
        recipe.Reward(use="premeditate.microworld.reward:graded", weight=2.0),
        recipe.Reward(use="preservation", timeout=7),
        recipe.Reward(use="exact", name="judge"),
        told(f"{__name__}:brightness"),
        told(f"{__name__}:make_plain", name="made"),
    )
    with build_panel(rewards) as panel:
        assert panel.names == (
            "graded.follow", "graded.keep", "graded.quality", "preservation.psnr", "preservation.ssim",
            "judge.follow", "judge.keep", "judge.quality", "brightness.score", "made.low", "made.high",
        )  # fmt: skip
        assert panel.weights[:4] == (2.0, 2.0, 2.0, 1.0)
        scores = panel.score(samples(2))
    assert scores.coverage["brightness"] == 1.0 and scores.coverage["graded"] == 0.0
    assert any("source and target" in reason for reason in scores.reasons)


def brightness(ss: Sequence[Sample]) -> list[float]:
    return [float(np.asarray(s.edit).mean()) for s in ss]


def make_plain() -> Plain:
    return Plain(lambda s: {"low": 0.0, "high": 1.0})


def fails_to_make() -> Plain:
    raise FileNotFoundError("no weights")


NOTHING = 3


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("exakt", "use exact, reasoner:SPEC or module:attribute"),
        ("no.such.module:thing", "No module named"),
        (f"{__name__}:no_such_thing", "no_such_thing"),
        (f"{__name__}:NOTHING", "is not a reward"),
        (f"{__name__}:fails_to_make", "no weights"),
        ("reasoner:micro", "load_reasoner"),
    ],
)
def test_a_reward_that_cannot_be_had_is_named_with_the_mend(use: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_panel([told(use)])
    assert said in str(caught.value) and caught.value.mend


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "there is no reward"),
        ([Entry(make_plain()), Entry(make_plain())], "two rewards are called plain"),
        ([Entry(FunctionReward(brightness, dimensions=()))], "give at least one"),
        ([Entry(FunctionReward(brightness, dimensions=("a", "a")))], "each once"),
        ([Entry(make_plain(), weight=math.nan)], "finite weight"),
        ([Entry(make_plain(), timeout=0)], "timeout above 0"),
    ],
)
def test_a_panel_that_makes_no_sense_is_refused(entries: list[Entry], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Panel(entries)
