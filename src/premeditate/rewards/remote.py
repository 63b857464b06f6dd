"""Rewards on another machine: the client of `premeditate rewards serve`.

    http://10.0.0.5:8100?timeout=300&batch=16
    http://a:8100,http://b:8100               the same rewards on two machines, which share the work

What the server is asked for is asked for until it answers or the time is up; it scores nothing twice (an idempotency
key goes along). Samples that were not answered for are "unavailable", never 0.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar
from uuid import uuid4

from PIL import Image
from pydantic import ValidationError

from premeditate import images
from premeditate.address import Address
from premeditate.errors import ModelError, one_line
from premeditate.local import check_options
from premeditate.remote import EndpointError, Http, api_key, read_json
from premeditate.rewards.base import RewardError, Sample
from premeditate.rewards.units import Unit, batches, units
from premeditate.rewards.wire import GRACE, KEY, PROTOCOL, RETURN, About, Told
from premeditate.trace import Verdict

OPTIONS = ("name", "key", "timeout", "batch", "parallel", "tries", "wait")
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
"""Seconds before the second try; it doubles up to the longest."""
PROBE = 30.0
"""Seconds that a server has to say what it scores."""
Result = TypeVar("Result")


class RemoteReward:
    """A `premeditate.rewards.base.Reward`. `dimensions` are the server's: those of its reward, or "reward.dimension"
    where it has several. `name`: what the server calls itself, for records."""

    concurrent = True

    def __init__(
        self, urls: Sequence[str], *, name: str = "", key: str | None = None, timeout: float = 600.0, batch: int = 16,
        parallel: int = 4, tries: int = 3, wait: float = 10.0,
    ) -> None:  # fmt: skip
        """Asks the server what it scores. `key`: default PREMEDITATE_REWARD_KEY from the environment. `timeout`:
        seconds for a call with all its tries, of which each has an equal share. `batch`: samples in a call at most; a
        group that is judged as one is never cut. `parallel`: calls at a time. `tries`: of a call that breaks; one that
        is only told to come back later comes back until the time is up. `wait`: seconds in which a server that cannot
        be reached may start. Raises `ModelError`."""
        for option, number in {"batch": batch, "parallel": parallel, "tries": tries}.items():
            if type(number) is not int or number < 1:
                raise ModelError(f"the reward option {option} is {number!r}", "give a whole number of at least 1")
        for option, seconds in {"timeout": timeout, "wait": wait}.items():
            if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf) or (
                option == "timeout" and not seconds
            ):
                raise ModelError(f"the reward option {option} is {seconds!r}", "give seconds")
        if not urls:
            raise ModelError("there is no reward server", "give at least one address")
        self._https = [Http(url, api_key=key or api_key(url, KEY)) for url in urls]
        self.timeout, self.parallel, self.tries = float(timeout), parallel, tries
        about = _now(self._find_out(float(wait)))
        self.about, self.dimensions, self.groupwise = about, about.dimensions, about.groupwise
        self.name = name or about.name
        self.max_batch: int | None = min(batch, about.items)
        self._next = 0
        self._inside: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    @classmethod
    def load(cls, spec: str, **options: Any) -> Self:
        """The reward at an address (the form: `premeditate.address`). `options` come before those in `spec`. Raises
        `ModelError`."""
        address = Address.parse(spec)
        if address.dialect is not None:
            raise ModelError(f"there is no reward dialect {address.dialect!r}", "leave it out: http://host:port")
        if address.model is not None:
            raise ModelError("a reward server has no models to choose from", "leave the # and what follows out")
        settings = address.settings(options, texts=("name", "key"))
        settings.pop("model", None)
        check_options(settings, OPTIONS, "a reward server")
        return cls(address.urls, **settings)

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order. Raises `RewardError` where the server scores other things than it did."""

        async def one(batch: Unit) -> list[Verdict]:
            async with self._turns():
                return await self._batch([samples[i] for i in batch])

        calls = batches(units(samples, self.groupwise), self.max_batch)
        found: dict[int, Verdict] = {}
        for batch, verdicts in zip(calls, await asyncio.gather(*map(one, calls)), strict=True):
            found.update(zip(batch, verdicts, strict=True))
        return [found[i] for i in range(len(samples))]

    async def aclose(self) -> None:
        for http in self._https:
            await http.aclose()

    def _turns(self) -> asyncio.Semaphore:
        """For all calls of `score` together; anew for each event loop, since a panel may come with another one."""
        loop = asyncio.get_running_loop()
        if self._inside is None or self._inside[0] is not loop:
            self._inside = loop, asyncio.Semaphore(self.parallel)
        return self._inside[1]

    # -- what goes out -------------------------------------------------------------------------------------------------

    async def _batch(self, samples: Sequence[Sample]) -> list[Verdict]:
        start = time.perf_counter()
        try:
            told = await self._call(await asyncio.to_thread(_body, samples), len(samples))
        except EndpointError as error:
            # Too heavy together, or refused for the sake of one: the others are not at fault.
            if error.kind == "rejected" and len(parts := units(samples, self.groupwise)) > 1:
                half = len(parts) // 2
                return await self._divided(samples, [*batches(parts[:half], None), *batches(parts[half:], None)])
            seconds = (time.perf_counter() - start) / len(samples)
            reason = one_line(error, EndpointError)
            lost = Verdict(status="unavailable", verifier=self.name, reason=reason, seconds=seconds)
            return [lost] * len(samples)
        return list(told.results)

    async def _divided(self, samples: Sequence[Sample], parts: Sequence[Unit]) -> list[Verdict]:
        """The parts one after the other."""
        found: dict[int, Verdict] = {}
        for part in parts:
            found.update(zip(part, await self._batch([samples[i] for i in part]), strict=True))
        return [found[i] for i in range(len(samples))]

    async def _call(self, body: bytes, count: int) -> Told:
        """Every error hands the turn to the next server; none is asked before the time that it gave. A try has its
        share of the time that is left, so that a server which hangs leaves some to the others, and to itself: with the
        same key it goes on where it is. Raises `EndpointError` once no try is left."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
        clock, turn = asyncio.get_running_loop().time, self._next
        until, failures = clock() + self.timeout, 0
        servers = len(self._https)
        self._next = (turn + 1) % servers
        ready, pauses = [0.0] * servers, [FIRST_WAIT] * servers
        before: EndpointError | None = None
        while True:
            http = self._https[turn]
            try:
                left, more = max(until - clock(), 0.001), self.tries - failures - 1
                share = left / (more + 1)
                # Back after a try at every other server, of which each may have its share of all that is left now.
                back = 0.0 if more < servers else (servers - 1) * left / more + GRACE
                headers[RETURN] = f"{back:.3f}"
                response = await http.call("POST", "/score", timeout=share, content=body, headers=headers)
                return self._read(http.host, response, count)
            except EndpointError as error:
                failures += error.kind != "busy"
                now = clock()
                ready[turn] = now + (pauses[turn] if error.retry_after is None else max(error.retry_after, 0.01))
                pauses[turn] = min(2 * pauses[turn], LONGEST_WAIT)
                others = ((turn + k) % servers for k in range(1, servers + 1))  # and itself, last
                chosen = next((k for k in others if max(ready[k], now) < until), None)
                if error.kind in ("rejected", "denied") or failures >= self.tries or chosen is None:
                    # Where the last try had hardly any time left, what was wrong before says more.
                    if before is not None and error.kind == "timeout" and error.status is None:
                        raise before from None
                    raise
                before, turn = error, chosen
                await asyncio.sleep(max(0.0, ready[turn] - now))

    # -- what comes back -----------------------------------------------------------------------------------------------

    def _read(self, host: str, response: Any, count: int) -> Told:
        try:
            told = Told.model_validate(read_json(host, response))
        except ValidationError as error:
            raise EndpointError("garbage", f"{host} sent no scores ({_first(error)})", "check the address") from None
        if told.dimensions != self.dimensions:
            raise RewardError(
                f"{host} now scores {', '.join(told.dimensions)}, not {', '.join(self.dimensions)}",
                "serve the same rewards as before, or start anew",
            )
        if len(told.results) != count:
            raise EndpointError(
                "garbage", f"{host} sent {len(told.results)} verdicts for {count} samples", "look into its log"
            )
        for verdict in told.results:
            if not all(d in self.dimensions and math.isfinite(score) for d, score in verdict.scores.items()):
                raise EndpointError(
                    "garbage", f"{host} sent a score that is no number or of no dimension", "look into its log"
                )
        return told

    async def _find_out(self, wait: float) -> About:
        """The first server's answer. Raises `EndpointError` where none is there in time."""
        until, pause = time.monotonic() + wait, FIRST_WAIT
        try:
            while True:
                for http in self._https:
                    try:
                        response = await http.call("GET", "/health", timeout=PROBE)
                        return _about(http.host, read_json(http.host, response))
                    except EndpointError as error:
                        lost = error
                if lost.kind not in ("busy", "unreachable") or time.monotonic() + pause > until:
                    raise lost
                await asyncio.sleep(pause)
                pause = min(2 * pause, 2.0)
        finally:
            await self.aclose()  # connections do not outlive this loop


def _about(host: str, body: dict[str, Any]) -> About:
    if "protocol" not in body and body.get("status") == "ok":
        raise EndpointError("denied", f"{host} tells nothing about itself without a key", f"set {KEY}")
    try:
        about = About.model_validate(body)
    except ValidationError as error:
        raise EndpointError("garbage", f"{host} is no reward server ({_first(error)})", "check the address") from None
    if about.protocol != PROTOCOL:
        raise EndpointError(
            "denied", f"{host} speaks version {about.protocol} of the protocol, not {PROTOCOL}",
            "run the same version of Premeditate on both machines",
        )  # fmt: skip
    return about


def _body(samples: Sequence[Sample]) -> bytes:
    """The request, each picture once. PNG: what the server sees is what there is, to the pixel."""
    places: dict[int, int] = {}
    pictures: list[str] = []

    def place(image: Image.Image) -> int:
        if id(image) not in places:
            places[id(image)] = len(pictures)
            pictures.append(base64.b64encode(images.encode(image, compress_level=1)).decode())
        return places[id(image)]

    asked = [
        {
            "id": s.task.id, "instruction": s.task.instruction, "meta": s.task.meta, "group": s.group,
            "source": place(s.source), "edit": place(s.edit),
            "checklist": None if s.checklist is None else s.checklist.model_dump(mode="json"),
        }
        for s in samples
    ]  # fmt: skip
    try:
        return json.dumps({"images": pictures, "samples": asked}).encode()
    except (TypeError, ValueError) as error:
        raise EndpointError(
            "rejected", f"a task's meta is no JSON ({error})", "keep to numbers, text, lists and mappings"
        ) from None


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']}"


def _now(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, also where an event loop runs already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
