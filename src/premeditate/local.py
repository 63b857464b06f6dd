"""What the adapters of models in this process share: a worker thread, the sidecar, the device, and quiet libraries."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from premeditate.errors import ModelError
from premeditate.errors import nearest as nearest

SIDECAR = "premeditate.json"
"""A file in a model folder that holds the defaults for our adapter of that model."""
UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "ConnectTimeout"}
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised inside the worker when nobody waits for the job any more."""


class Job:
    """Handed to the work: `check()` raises `Stopped` once the caller was cancelled. Call it between steps."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def check(self) -> None:
        if self._stop.is_set():
            raise Stopped


class Worker:
    """One thread that runs one job after another, so that the event loop stays free and a model is never shared.

    A lock tied to an event loop would not do: the same model serves one `asyncio.run` after the other.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"premeditate-{name}")

    async def run(self, work: Callable[[Job], Result]) -> Result:
        """The result of `work(job)`. When cancelled, work that waits is dropped and work that runs is told to stop."""
        job = Job()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, job)
        finally:
            job.stop()


class Gate:
    """`async with gate():` lets at most `size` coroutines in at a time, on whichever event loop runs."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"capacity is {size}; give at least 1")
        self._size = size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inside = asyncio.Semaphore(size)

    def __call__(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._inside = loop, asyncio.Semaphore(self._size)
        return self._inside


def is_async(fn: object) -> bool:
    """True for `async def` functions and for objects whose call is one."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


class Function:
    """A user's function, plain or async, as an adapter calls it: `await function(...)`.

    A plain one runs in one worker thread, call after call, and may return an awaitable; of an async one, up to
    `capacity` calls run at a time. `name`: default the function's own.
    """

    def __init__(self, fn: Callable[..., Any], owner: str, *, name: str | None = None, capacity: int = 64) -> None:
        if not callable(fn):
            raise ValueError(f"{owner} needs a function, not {type(fn).__name__}")
        self.name = name or str(getattr(fn, "__name__", type(fn).__name__))
        self.is_async = is_async(fn)
        self._fn, self._worker, self._gate = fn, Worker(self.name), Gate(capacity)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns. Raises what it raises."""
        if self.is_async:
            async with self._gate():
                return await self._fn(*args, **kwargs)
        answer = await self._worker.run(lambda _: self._fn(*args, **kwargs))
        return await answer if inspect.isawaitable(answer) else answer


def check_options(options: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raises `ModelError` for an option that does not exist, with the nearest names that do."""
    for key in options:
        if key not in known:
            raise ModelError(f"{what} has no option {key!r}", f"did you mean {nearest(key, known)}?")


def read_sidecar(folder: Path, known: Sequence[str]) -> dict[str, Any]:
    """`premeditate.json` of a model folder, {} where there is none. Raises `ModelError` for one that cannot be read."""
    path = folder / SIDECAR
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "write a JSON object, or delete the file") from None
    if not isinstance(sidecar, dict):
        raise ModelError(f"{path} holds no JSON object", 'write something like {"max_batch": 8}, or delete the file')
    check_options(sidecar, known, str(path))
    return sidecar


def pick_device(device: str | None) -> str:
    """`device`, or the best one there is: "cuda", "mps" or "cpu"."""
    import torch

    if device not in (None, "auto"):
        try:
            return str(torch.device(device))
        except RuntimeError:
            raise ModelError(f"there is no device {device!r}", "give cpu, cuda, cuda:1 or mps") from None
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(dtype: str | None, device: str) -> Any:
    """The torch dtype of that name; None or "auto": float32 on a CPU (half precision is slow there), else bfloat16."""
    import torch

    if dtype in (None, "auto"):
        return torch.float32 if device == "cpu" else torch.bfloat16
    known = ("float32", "bfloat16", "float16")
    if dtype not in known:
        raise ModelError(f"there is no dtype {dtype!r}", f"give one of {', '.join(known)}")
    return getattr(torch, str(dtype))


_quiet_lock = threading.Lock()
_quiet_inside: Counter[str] = Counter()
_quiet_levels: dict[str, int] = {}


@contextmanager
def quiet(*libraries: str, loading: bool = False) -> Iterator[None]:
    """No progress bars and nothing below an error from `libraries` ("diffusers", "transformers"), which are imported.
    Several threads may be inside; the last to leave puts things back.

    `loading`: no Python warnings either, which only the thread that loads a model asks for: these filters are not made
    for several threads. Downloads keep their bars.
    """
    with _quiet_lock:
        for name in libraries:
            _quiet_inside[name] += 1
            if _quiet_inside[name] == 1:
                # Imported first: the library sets its own level when it is.
                importlib.import_module(f"{name}.utils.logging").disable_progress_bar()
                _quiet_levels[name] = logging.getLogger(name).level
                logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings() if loading else nullcontext():
            if loading:
                warnings.simplefilter("ignore")
            yield
    finally:
        with _quiet_lock:
            for name in libraries:
                _quiet_inside[name] -= 1
                if _quiet_inside[name] == 0:
                    importlib.import_module(f"{name}.utils.logging").enable_progress_bar()
                    logging.getLogger(name).setLevel(_quiet_levels[name])


def load_failure(spec: str, error: Exception) -> ModelError:
    """One line that says why a model could not be loaded, with the mend that fits a folder or a hub id."""
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    if Path(spec).is_dir():
        return ModelError(f"{spec} cannot be loaded: {why}", "check that the folder is complete")
    names = {type(e).__name__ for e in _causes(error)} | {type(error).__name__}
    if names & UNREACHABLE or "offline" in why.lower() or "connect" in why.lower():
        return ModelError(
            f"{spec} is not on this machine and the model hub cannot be reached",
            f"unset HF_HUB_OFFLINE and check the network, or run `hf download {spec}` where there is one, "
            "or give a local folder",
        )
    return ModelError(
        f"{spec} cannot be loaded: {why}",
        f"check the name, and that you may read it (`hf auth login`, then `hf download {spec}`)",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause
