"""The reward panel: several rewards look at the same samples, beside whatever else goes on, and make a reward matrix.

    with Panel([Entry(graded), Entry(judge, weight=0.5, timeout=60)]) as panel:
        pending = panel.submit(samples)     # at once; sample the next group meanwhile
        scores = pending.result()           # scores.matrix [N, D], NaN where there is no score

What a reward does wrong stays with it. One that raises, hangs, blocks its thread or answers too late leaves its samples
without a score, with the reason; the other rewards, the other samples and the caller go on. Only a `RewardError` (the
reward breaks its contract) is handed on to the caller, because every step would meet it again.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from premeditate.errors import ModelError, one_line
from premeditate.rewards.base import Reward, RewardError, Sample
from premeditate.rewards.lane import Lane
from premeditate.rewards.specs import LoadReasoner, load_reward
from premeditate.rewards.units import Unit, batches, units
from premeditate.trace import Status, Verdict

PARALLEL = 4
"""Calls of one reward under way at a time, where it is `concurrent` and says no other number as `parallel`."""
GRACE = 1.0
"""Seconds in which a thread has to take notice of a call's cancellation before it is left behind."""
TRIES = 3
"""Where one sample each of so many groups of a failed call (or so many samples, where it has fewer groups) fail by
themselves too, and none did not, the rest is not asked about."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """A reward of the panel. `weight`: of each of its dimensions. `timeout`: seconds for one call, from when its turn
    comes. `name`: the reward's own by default."""

    reward: Reward
    weight: float = 1.0
    timeout: float = 120.0
    name: str = ""


@dataclass(frozen=True)
class Scores:
    """`matrix` [N, D] float64, NaN where there is no score; `names` [D]: "reward.dimension"; `verdicts` [N][R];
    `seconds`: from the first call of a reward to its last answer."""

    matrix: np.ndarray
    names: tuple[str, ...]
    rewards: tuple[str, ...]
    verdicts: tuple[tuple[Verdict, ...], ...]
    seconds: dict[str, float]

    @property
    def statuses(self) -> tuple[tuple[Status, ...], ...]:
        """[N][R]: "scored" only where every dimension of the reward has a score."""
        return tuple(tuple(verdict.status for verdict in row) for row in self.verdicts)

    @property
    def coverage(self) -> dict[str, float]:
        """Per reward, the share of samples with a score in each of its dimensions; NaN without samples."""
        columns = list(zip(*self.statuses, strict=True)) or [()] * len(self.rewards)
        shares = (sum(s == "scored" for s in column) / len(column) if column else math.nan for column in columns)
        return dict(zip(self.rewards, shares, strict=True))

    @property
    def reasons(self) -> tuple[str, ...]:
        """ "reward: why", once for every sample that a reward did not fully score, so that they can be counted."""
        return tuple(
            f"{name}: {verdict.reason or verdict.status}"
            for row in self.verdicts
            for name, verdict in zip(self.rewards, row, strict=True)
            if verdict.status != "scored"
        )


class Pending:
    """Scores that are on their way."""

    def __init__(self, future: Future[Scores]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Scores:
        """Waits for the scores. Raises `RewardError`, and RuntimeError where the panel was closed meanwhile."""
        try:
            return self._future.result()
        except CancelledError:
            raise RuntimeError("the reward panel was closed before it had answered") from None

    async def wait(self) -> Scores:
        """`result` for coroutines. When cancelled, the scoring is too."""
        try:
            return await asyncio.wrap_future(self._future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError("the reward panel was closed before it had answered") from None

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._future.cancel()


class Panel:
    """`names`, `weights` [D]: the columns of the reward matrix. `dimensions`: of each reward. `groupwise`: one of them
    judges groups as a whole.

    Samples of one `submit` go to a reward in one call, or in calls of at most its `max_batch`; a reward that is
    `groupwise` gets every group whole, so submit groups whole. Calls of one reward run one after the other, or some at
    a time where it is `concurrent`; rewards run side by side, each in a thread of its own.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Raises `ModelError` for an empty panel, two rewards of one name, or a reward without dimensions."""
        if not entries:
            raise ModelError("there is no reward", "give at least one")
        self._seats = [_Seat(entry) for entry in entries]
        self.rewards = tuple(seat.name for seat in self._seats)
        if twice := next((name for name in self.rewards if self.rewards.count(name) > 1), None):
            raise ModelError(f"two rewards are called {twice}", "give each a name of its own: rewards.1.name=...")
        self.names = tuple(f"{seat.name}.{dimension}" for seat in self._seats for dimension in seat.dimensions)
        self.weights = tuple(seat.entry.weight for seat in self._seats for _ in seat.dimensions)
        self.dimensions = {seat.name: seat.dimensions for seat in self._seats}
        self.groupwise = any(getattr(seat.reward, "groupwise", False) for seat in self._seats)
        self._lane: Lane | None = None
        self._closed = False

    def submit(self, samples: Sequence[Sample]) -> Pending:
        """Has the samples scored in the background, and returns at once. Raises RuntimeError once closed."""
        if self._closed:
            raise RuntimeError("the reward panel is closed; make another one")
        if self._lane is None:
            self._lane = Lane("rewards")
        return Pending(self._lane.call(self._score(tuple(samples))))

    def score(self, samples: Sequence[Sample]) -> Scores:
        """`submit` and wait."""
        return self.submit(samples).result()

    def patience(self, samples: int, submits: int = 1) -> float:
        """Seconds within which so many submits of so many samples each are answered, whatever the rewards do: all their
        calls take all their time, one turn after the other."""
        return max(seat.patience(samples, submits) for seat in self._seats)

    def close(self) -> None:
        """Cancels what is under way, gives rewards with an `aclose` the time to close, and ends the threads."""
        self._closed = True
        if self._lane is not None:
            self._lane.stop()
            self._lane = None
        for seat in self._seats:
            seat.close()

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _score(self, samples: tuple[Sample, ...]) -> Scores:
        found = await _together(seat.score(samples) for seat in self._seats)
        rows = tuple(zip(*(verdicts for verdicts, _ in found), strict=True))
        matrix = np.full((len(samples), len(self.names)), math.nan)
        for n, row in enumerate(rows):
            matrix[n] = [
                verdict.scores.get(dimension, math.nan)
                for seat, verdict in zip(self._seats, row, strict=True)
                for dimension in seat.dimensions
            ]
        seconds = {seat.name: spent for seat, (_, spent) in zip(self._seats, found, strict=True)}
        return Scores(matrix, self.names, self.rewards, rows, seconds)


class _Seat:
    """One reward at the panel. Its methods run on the panel's thread; the reward runs in its own, which is replaced
    where a call blocks it."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.reward = entry, entry.reward
        self.name = entry.name or entry.reward.name
        self.dimensions = tuple(entry.reward.dimensions)
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions):
            raise ModelError(
                f"the reward {self.name} has the dimensions {list(self.dimensions)}", "give at least one, each once"
            )
        if not (math.isfinite(entry.weight) and entry.timeout > 0):
            raise ModelError(
                f"the reward {self.name} has weight {entry.weight} and timeout {entry.timeout}",
                "give a finite weight, and a timeout above 0 seconds",
            )
        concurrent = bool(getattr(self.reward, "concurrent", False))
        self._parallel = (getattr(self.reward, "parallel", None) or PARALLEL) if concurrent else 1
        self._turns = asyncio.Semaphore(self._parallel)
        self._lane: Lane | None = None

    async def score(self, samples: Sequence[Sample]) -> tuple[list[Verdict], float]:
        """A verdict per sample and the seconds spent. Raises `RewardError`."""
        found: dict[int, Verdict] = {}
        spans: list[tuple[float, float]] = []

        async def one(batch: Sequence[int]) -> None:
            async with self._turns:
                start = time.perf_counter()
                verdicts = await self._batch([samples[i] for i in batch])
                found.update(zip(batch, verdicts, strict=True))
                spans.append((start, time.perf_counter()))

        calls = batches(self._units(samples), getattr(self.reward, "max_batch", None))
        await _together(one(batch) for batch in calls)
        spent = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0
        return [found[i] for i in range(len(samples))], spent

    def patience(self, samples: int, submits: int) -> float:
        calls = math.ceil(samples / (getattr(self.reward, "max_batch", None) or max(1, samples)))
        if getattr(self.reward, "groupwise", False):
            calls *= 2  # whole groups may leave almost half of every call empty
        return math.ceil(submits * calls / self._parallel) * (self.entry.timeout + 2 * GRACE)

    def _units(self, samples: Sequence[Sample]) -> list[Unit]:
        return units(samples, getattr(self.reward, "groupwise", False))

    async def _batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One call; where it raises, its samples (or groups) are asked about one by one in the time that is left, so
        that one which the reward cannot bear does not cost the others theirs."""
        until = time.monotonic() + self.entry.timeout
        answer = await self._call(samples, until)
        waiting = self._units(samples)
        if not isinstance(answer, _Failure) or answer.late or len(waiting) == 1:
            return self._filled(answer, len(samples))
        found: dict[int, Verdict] = {}
        failed: Counter[str] = Counter()
        hopeless = False
        for k in range(1, len(waiting) + 1):
            # What is wrong with a task is wrong with its whole group: the next one is of another.
            unit = min(waiting, key=lambda unit: failed[samples[unit[0]].group] if samples[unit[0]].group else 0)
            waiting.remove(unit)
            if not hopeless:
                answer = await self._call([samples[i] for i in unit], until)
            if isinstance(answer, _Failure):
                failed[samples[unit[0]].group] += 1
                hopeless = hopeless or answer.late or failed.total() == TRIES == k
            found.update(zip(unit, self._filled(answer, len(unit)), strict=True))
        return [found[i] for i in range(len(samples))]

    async def _call(self, samples: Sequence[Sample], until: float) -> list[Verdict] | _Failure:
        """The reward's verdicts, or why there are none. Raises `RewardError`."""
        if self._lane is None:
            self._lane = Lane(self.name)
        lane = self._lane
        answer = asyncio.wrap_future(lane.call(_asked(self.reward, samples, self.name)))
        try:
            done, _ = await asyncio.wait({answer}, timeout=max(0.0, until - time.monotonic()))
        finally:
            answer.cancel()  # nothing where it is done
        if not done:
            return await self._late(lane)
        if answer.cancelled():
            return _Failure("it cancelled itself")
        if error := answer.exception():
            if isinstance(error, RewardError):
                raise error
            return _Failure(one_line(error))
        return self._read(answer.result(), len(samples))

    async def _late(self, lane: Lane) -> _Failure:
        """A call that did not end in time was cancelled; where its thread does not even notice, a new one is used."""
        stuck = ""
        if not await lane.answers(GRACE):
            stuck = " and blocks its thread"
            if self._lane is lane:
                self._lane = None
            lane.stop(0)
        return _Failure(
            f"timed out after {self.entry.timeout:g} s{stuck}; make it faster, or raise its timeout", late=True
        )

    def _read(self, verdicts: Any, count: int) -> list[Verdict]:
        """Raises `RewardError` for anything but a verdict per sample with finite scores of announced dimensions."""
        mend = "return one Verdict per sample, in order, with finite scores under the reward's dimensions"
        if not isinstance(verdicts, Sequence) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
            raise RewardError(f"the reward {self.name} returned no list of verdicts", mend)
        if len(verdicts) != count:
            raise RewardError(f"the reward {self.name} returned {len(verdicts)} verdicts for {count} samples", mend)
        return [self._checked(verdict, mend) for verdict in verdicts]

    def _checked(self, verdict: Verdict, mend: str) -> Verdict:
        """`verdict` without NaN among its scores, and "scored" only where no dimension is missing."""
        for dimension, score in verdict.scores.items():
            if dimension not in self.dimensions:
                raise RewardError(f"the reward {self.name} scored {dimension!r}, which it did not announce", mend)
            if math.isinf(score):
                raise RewardError(f"the reward {self.name} gave {score} as {dimension}", mend)
        scores = {dimension: score for dimension, score in verdict.scores.items() if not math.isnan(score)}
        missing = [dimension for dimension in self.dimensions if dimension not in scores]
        if verdict.status != "scored" or not missing:
            return verdict if len(scores) == len(verdict.scores) else verdict.model_copy(update={"scores": scores})
        reason = verdict.reason or f"there is no score of {', '.join(missing)}"
        return verdict.model_copy(update={"status": "unavailable", "scores": scores, "reason": reason})

    def _filled(self, answer: list[Verdict] | _Failure, count: int) -> list[Verdict]:
        if isinstance(answer, _Failure):
            return [Verdict(status="unavailable", verifier=self.name, reason=answer.reason)] * count
        return answer

    def close(self) -> None:
        lane, self._lane = self._lane, None
        if lane is None:
            return
        if callable(aclose := getattr(self.reward, "aclose", None)):
            with suppress(Exception):
                lane.call(aclose()).result(GRACE)
        lane.stop()


@dataclass(frozen=True)
class _Failure:
    """Why a call has no verdicts. `late`: there is no time left for another one."""

    reason: str
    late: bool = False


async def _asked(reward: Reward, samples: Sequence[Sample], name: str) -> Any:
    try:
        answer: Any = reward.score(samples)
        if not inspect.isawaitable(answer):
            raise RewardError(f"the method score of the reward {name} is a plain one", "write async def score(...)")
        return await answer
    except (KeyboardInterrupt, SystemExit) as error:
        raise RuntimeError(repr(error)) from None  # ends the call, not the thread


async def _together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in order. Where one raises, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class Told(Protocol):
    """What a recipe says of a reward (`premeditate.training.recipe.Reward`)."""

    @property
    def use(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def name(self) -> str: ...


def build_panel(rewards: Sequence[Told], load_reasoner: LoadReasoner | None = None) -> Panel:
    """The panel that a recipe asks for; `use` is read by `premeditate.rewards.specs.load_reward`, which needs
    `load_reasoner` for "reasoner:SPEC". Raises `ModelError`."""
    return Panel([Entry(load_reward(r.use, load_reasoner), r.weight, r.timeout, r.name) for r in rewards])
