"""Any function of samples as a reward.

    def brightness(samples):
        return [ImageStat.Stat(s.edit.convert("L")).mean[0] / 255 for s in samples]

It returns one value per sample, in order (a set has no order, and is refused): a number, or None (or NaN) where it has
none; or a mapping from dimension to such a value, with the dimensions announced beside it
(`brightness.dimensions = ("mean", "spread")`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, TypeVar

from premeditate.local import is_async
from premeditate.rewards.base import RewardError, Sample
from premeditate.trace import Verdict

SCORE = "score"
"""The dimension of a function that announces none."""
Result = TypeVar("Result")


class FunctionReward:
    """Calls `fn(samples)`, plain or async. A plain one runs in a daemon thread of its own: when the caller gives up,
    it is left behind, and does not hold up the end of the program.

    `dimensions`, `groupwise`, `concurrent` and `max_batch` (see `premeditate.rewards.base.Reward`) are taken from the
    function's attributes of those names unless given; an async function is `concurrent` unless it says otherwise.
    """

    def __init__(
        self, fn: Callable[[Sequence[Sample]], Any], *, name: str = "", dimensions: Sequence[str] | None = None
    ) -> None:
        if not callable(fn):
            raise ValueError(f"FunctionReward needs a function of samples, not {type(fn).__name__}")
        self.name = name or str(getattr(fn, "__name__", type(fn).__name__))
        told = dimensions if dimensions is not None else getattr(fn, "dimensions", (SCORE,))
        self.dimensions: tuple[str, ...] = (told,) if isinstance(told, str) else tuple(told)
        self.groupwise = bool(getattr(fn, "groupwise", False))
        self.concurrent = bool(getattr(fn, "concurrent", is_async(fn)))
        self.max_batch: int | None = getattr(fn, "max_batch", None)
        self._fn = fn

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order. Raises what the function raises, and `RewardError` for an answer that is
        not one value per sample."""
        start = time.perf_counter()
        answer = self._fn(samples) if is_async(self._fn) else await detached(lambda: self._fn(samples), self.name)
        if inspect.isawaitable(answer):
            answer = await answer
        values = self._values(answer, len(samples))
        seconds = (time.perf_counter() - start) / max(1, len(samples))
        return [self._verdict(value, seconds) for value in values]

    def _values(self, answer: Any, count: int) -> list[Any]:
        mend = f"return a list with one number, None or mapping for each of the {count} samples, in order"
        if isinstance(answer, str | bytes | Mapping | Set) or not isinstance(answer, Iterable):
            raise RewardError(f"the reward {self.name} returned {type(answer).__name__} instead of a list", mend)
        values = list(answer)
        if len(values) != count:
            raise RewardError(f"the reward {self.name} returned {len(values)} values for {count} samples", mend)
        return values

    def _verdict(self, value: Any, seconds: float) -> Verdict:
        if not isinstance(value, Mapping):
            if value is not None and len(self.dimensions) != 1:
                raise RewardError(
                    f"the reward {self.name} returned one value for its dimensions {', '.join(self.dimensions)}",
                    "return a mapping from dimension to value",
                )
            value = {self.dimensions[0]: value}
        if unknown := [key for key in value if key not in self.dimensions]:
            wanted = ", ".join(repr(str(key)) for key in value)
            raise RewardError(
                f"the reward {self.name} returned the dimension {unknown[0]!r}, which it did not announce",
                f"set dimensions = ({wanted},) on the function",
            )
        scores = {key: found for key, raw in value.items() if (found := self._number(raw, key)) is not None}
        missing = [key for key in self.dimensions if key not in scores]
        return Verdict(
            status="unavailable" if missing else "scored", scores=scores, verifier=self.name, seconds=seconds,
            reason=f"the function gave no {', '.join(missing)}" if missing else "",
        )  # fmt: skip

    def _number(self, raw: Any, dimension: str) -> float | None:
        if not isinstance(raw, str) and callable(item := getattr(raw, "item", None)):
            with suppress(ValueError, RuntimeError):  # it has more than one element
                raw = item()
        if raw is None or (isinstance(raw, numbers.Real) and math.isnan(raw)):
            return None
        if not isinstance(raw, numbers.Real) or math.isinf(raw):
            raise RewardError(
                f"the reward {self.name} returned {str(raw)[:80]!r} ({type(raw).__name__}) as {dimension}",
                "return a finite number, or None where there is none",
            )
        return float(raw)


async def detached(work: Callable[[], Result], name: str) -> Result:
    """The result of `work()`, run in a daemon thread of its own. Cancelling leaves the thread to itself: Python has no
    way to end it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            # A future cannot hold a StopIteration.
            error = RuntimeError(repr(raised)) if isinstance(raised, StopIteration) else raised
        except BaseException as raised:  # a call of sys.exit() ends the call, not the program
            error = RuntimeError(repr(raised))
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=f"premeditate-{name}", daemon=True).start()
    return await future
