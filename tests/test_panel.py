"""The reward panel with rewards that are slow, hang, raise, block their thread or answer nonsense."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from premeditate.errors import ModelError
from premeditate.rewards.base import Reward, RewardError, Sample
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.panel import TRIES, Entry, Panel, build_panel
from premeditate.trace import Task, Verdict

PICTURE = Image.new("RGB", (8, 8))
WAIT = 10.0


def samples(n: int, group_size: int = 1) -> list[Sample]:
    """Samples that a reward can tell apart by meta["k"]."""
    return [
        Sample(
            Task(id=f"t{k}", images=(), instruction="x", meta={"k": k}), PICTURE, PICTURE, group=f"g{k // group_size}"
        )
        for k in range(n)
    ]


def k_of(sample: Sample) -> int:
    return sample.task.meta["k"]


def function(fn: Callable[[Sequence[Sample]], Any], **attributes: Any) -> FunctionReward:
    for name, value in attributes.items():
        setattr(fn, name, value)
    return FunctionReward(fn, name=attributes.get("name", "f"))


@contextmanager
def panel_of(*entries: Entry | Reward) -> Iterator[Panel]:
    with Panel([e if isinstance(e, Entry) else Entry(e) for e in entries]) as panel:
        yield panel


class Plain:
    """A reward as somebody else would write it."""

    name = "plain"
    dimensions: tuple[str, ...] = ("low", "high")

    def __init__(self, answer: Callable[[Sample], dict[str, float]]) -> None:
        self.answer = answer
        self.calls: list[list[int]] = []

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        self.calls.append([k_of(s) for s in samples])
        await asyncio.sleep(0)
        return [Verdict(status="scored", scores=self.answer(s)) for s in samples]


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


# -- rewards that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain", "blocking"])
def test_a_reward_that_hangs_is_left_behind_and_the_others_are_not(kind: str) -> None:
    """ "blocking": an async function that holds its event loop, as one does that calls time.sleep or requests."""
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
