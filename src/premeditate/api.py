"""The Python API: one call from an image and an instruction to a verified edit with its record.

result = premeditate.edit("photo.png", "paint the odd one out green")
result.image.save("out.png")
result.verified, result.trace.selection.reason
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack, cast

from PIL import Image

from premeditate import images
from premeditate.attribute import is_attribute, load_attribute
from premeditate.engine.budget import Budget
from premeditate.engine.memory import MemoryStore, Store
from premeditate.engine.pool import Policy
from premeditate.engine.pooled import pooled
from premeditate.engine.runner import Engine, Limits
from premeditate.engine.strategies import Options, Settings, make_settings
from premeditate.engine.walk import OnEvent
from premeditate.errors import ImageError, ModelError, PremeditateError, check_instruction
from premeditate.rewards.base import Verifier
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.store import RunStore, versions
from premeditate.trace import Answer, Round, Task, Trace

if TYPE_CHECKING:
    import numpy as np

    from premeditate.editors.base import Editor
    from premeditate.reasoners.base import Reasoner

    Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
else:
    Source: TypeAlias = object

StoreLike: TypeAlias = "str | os.PathLike[str] | Store | None"
Value = TypeVar("Value")

VERIFIERS = {"exact": "premeditate.microworld.verifier:ExactVerifier"}
"""Verifier names beside "reasoner" (the checklist verifier) and "none"."""


@dataclass(frozen=True)
class Result:
    """`image`: the chosen round's, at the source's size. `trace`: the whole record; `store` holds its pictures."""

    image: Image.Image
    source: Image.Image
    trace: Trace
    store: Store

    @property
    def verified(self) -> bool:
        """True only where the verifier answered every item of the chosen round with yes."""
        return self.trace.verified

    @property
    def chosen(self) -> Round:
        """The round that `image` comes from."""
        chosen = self.trace.chosen
        assert chosen is not None
        return chosen

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The chosen round's checklist with its answers; empty where there is no verdict."""
        return () if self.chosen.verdict is None else self.chosen.verdict.answers

    @property
    def seconds(self) -> float:
        return self.trace.seconds

    def summary(self) -> dict[str, Any]:
        """The outcome as plain JSON values; `rounds` counts the chosen chain's."""
        selection = self.trace.selection
        assert selection is not None
        verdict = self.chosen.verdict
        return {
            "verified": self.verified,
            "reason": selection.reason,
            "chosen_chain": selection.chain,
            "chosen_round": selection.round,
            "rounds": len(self.trace.chains[selection.chain].rounds),
            "chains": len(self.trace.chains),
            "verdict": None if verdict is None else verdict.status,
            "checklist": [
                {"question": a.item.question, "dimension": a.item.dimension, "status": a.status, "yes": a.yes,
                 "p_yes": a.p_yes}
                for a in self.answers
            ],
            "calls": self.trace.calls,
            "seconds": round(self.seconds, 3),
            "trace": self.trace.id,
        }  # fmt: skip


def edit(
    image: Source | Sequence[Source],
    instruction: str,
    *,
    editor: str | Editor = "micro",
    reasoner: str | Reasoner = "micro",
    verifier: str | Verifier | None = "reasoner",
    store: StoreLike = None,
    on_event: OnEvent | None = None,
    limits: Limits | None = None,
    policy: Policy | None = None,
    **options: Unpack[Options],
) -> Result:
    """Edits `image` by `instruction`: plan, edit, look, check, edit again if needed; the best verified round wins.

    `image`: a path, encoded bytes, a Pillow image or a uint8 array [H, W], [H, W, 3] or [H, W, 4]; or several of them
    (the first is edited, the others are shown). `editor`, `reasoner`: a SPEC (preset, folder, hub id, address), an
    object of the protocol, or several endpoints of one model in a list. `verifier`: "reasoner" (its checklist and
    answers), "exact" (micro world), "none", "module:attribute", the SPEC of another reasoner that answers instead, or
    an object. `options`: `strategy`, `max_rounds`, `chains`, `seed` and the other fields of
    `premeditate.engine.strategies.Settings`. `policy`: how endpoints are treated (time-outs, retries, capacity:
    `premeditate.engine.pool.Policy`). `store`: a folder that keeps the record; the same call on the same folder goes on
    where it was cut off, or returns what is there. `on_event(trace, event)` is called after every stored event.

    Raises a ValueError with the mend for what the caller can put right (`ImageError`, `InstructionError`, `ModelError`
    where no edit could be made at all, `StoreError`). Also works inside a running event loop, on a thread of its own;
    there, `edit_async` is the better choice.
    """
    return _run(lambda: edit_async(
        image, instruction, editor=editor, reasoner=reasoner, verifier=verifier, store=store, on_event=on_event,
        limits=limits, policy=policy, **options,
    ))  # fmt: skip


async def edit_async(
    image: Source | Sequence[Source],
    instruction: str,
    *,
    editor: str | Editor = "micro",
    reasoner: str | Reasoner = "micro",
    verifier: str | Verifier | None = "reasoner",
    store: StoreLike = None,
    on_event: OnEvent | None = None,
    limits: Limits | None = None,
    policy: Policy | None = None,
    **options: Unpack[Options],
) -> Result:
    """`edit` for callers inside an event loop. Cancelling it leaves a store that opens and can be continued."""
    # Whatever can be found wrong without a model is found before one is loaded.
    settings = make_settings(**options)
    instruction = check_instruction(instruction)
    several = isinstance(image, list | tuple)
    sources = cast("Sequence[Source]", image if several else [image])
    pictures = [load_image(one) for one in sources]
    if not pictures:
        raise ImageError("there is no image", "give at least one")
    the_editor, the_reasoner, the_verifier = await asyncio.to_thread(load_parts, editor, reasoner, verifier, policy)
    check_source((the_editor, the_reasoner), pictures[0])
    kept, close = _open(store)
    try:
        refs = tuple(kept.put_image(one) for one in pictures)
        name = hashlib.sha256("/".join([*(ref.sha256 for ref in refs), instruction]).encode()).hexdigest()[:12]
        task = Task(id=f"edit-{name}", images=refs, instruction=instruction)
        engine = Engine(the_editor, the_reasoner, the_verifier, kept, settings, limits=limits, on_event=on_event,
                        versions=versions())  # fmt: skip
        (trace,) = await engine.run([task])
        if trace.chosen is None:
            raise ModelError(
                f"no edit could be made: {trace.error}",
                "check the editor (its address, memory and options) and run the same command again",
            )
        return Result(kept.get_image(trace.chosen.image), pictures[0], trace, kept)
    finally:
        close()


async def run_tasks_async(
    tasks: Sequence[Task],
    *,
    store: StoreLike,
    editor: str | Editor = "micro",
    reasoner: str | Reasoner = "micro",
    verifier: str | Verifier | None = "reasoner",
    settings: Settings | None = None,
    limits: Limits | None = None,
    policy: Policy | None = None,
    budget: Budget | None = None,
    on_event: OnEvent | None = None,
) -> list[Trace]:
    """Runs many tasks at once, batched, and returns their traces in order. The tasks' images are in `store`.

    Traces that `store` holds already are continued. A task that fails has `trace.error`; the others go on. What a spent
    `budget` stopped is unfinished, and goes on in the next run.
    """
    if store is None:
        raise ValueError("run_tasks needs the store that holds the tasks' images")
    parts = await asyncio.to_thread(load_parts, editor, reasoner, verifier, policy)
    kept, close = _open(store)
    try:
        engine = Engine(*parts, kept, settings, limits=limits, budget=budget, on_event=on_event, versions=versions())
        return await engine.run(tasks)
    finally:
        close()


def run_tasks(tasks: Sequence[Task], **options: Any) -> list[Trace]:
    """`run_tasks_async` for callers outside an event loop; the same options."""
    return _run(lambda: run_tasks_async(tasks, **options))


def load_parts(
    editor: str | Editor, reasoner: str | Reasoner, verifier: str | Verifier | None, policy: Policy | None = None
) -> tuple[Editor, Reasoner, Verifier | None]:
    """SPECs as objects; objects pass through. What is reached by an address is pooled under `policy`, so that the
    engine and the verifier ask through the same queue. Raises `ModelError` for what cannot be loaded."""
    from premeditate import presets

    the_editor: Editor = pooled(presets.load_editor(editor) if isinstance(editor, str) else editor, policy)
    the_reasoner: Reasoner = pooled(presets.load_reasoner(reasoner) if isinstance(reasoner, str) else reasoner, policy)
    chosen = load_verifier(verifier, the_reasoner, policy) if isinstance(verifier, str) else verifier
    return the_editor, the_reasoner, chosen


def load_verifier(spec: str, reasoner: Reasoner, policy: Policy | None = None) -> Verifier | None:
    """The verifier that `spec` names: "reasoner" (checks with `reasoner`), "exact", "none", "module:attribute" (a
    verifier, or a class or function without arguments that makes one), or the SPEC of another reasoner, which then
    answers the checklists: a judge that has no part in the plans. Raises `ModelError` for anything else."""
    from premeditate import presets

    if spec == "none":
        return None
    if spec == "reasoner":
        return ChecklistVerifier(reasoner)
    where = VERIFIERS.get(spec, spec)
    if not is_attribute(where):
        try:
            return ChecklistVerifier(pooled(presets.load_reasoner(spec), policy))
        except ModelError as error:
            names = f"reasoner, {', '.join(VERIFIERS)}, none, module:attribute or the SPEC of a reasoner"
            raise ModelError(f"there is no verifier {spec!r} ({error.problem})", f"use {names}") from error
    try:
        found = load_attribute(where)
        made = found() if (callable(found) and not isinstance(found, Verifier)) or isinstance(found, type) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise ModelError(f"the verifier {spec!r} cannot be loaded ({error})", "check module:attribute") from error
    if not isinstance(made, Verifier):
        raise ModelError(
            f"{spec!r} is not a verifier",
            "it needs name, uses_reasoner, wants_checklist(task) and async verify(samples)",
        )
    return made


def load_image(source: Source) -> Image.Image:
    """Any accepted image as RGB. Raises `ImageError`."""
    if isinstance(source, Image.Image):
        if not source.width or not source.height:
            raise ImageError("the image has no pixels", "give one with at least one pixel")
        return images.to_rgb(source)
    if isinstance(source, str | bytes | os.PathLike):
        return images.load(source)
    if hasattr(source, "__array_interface__"):
        import numpy as np

        array = np.asarray(source)
        if (
            array.dtype != np.uint8
            or array.size == 0
            or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
        ):
            raise ImageError(
                f"the array is {array.dtype} {list(array.shape)}",
                "give uint8 [H, W], [H, W, 3] or [H, W, 4] with values 0-255",
            )
        return images.to_rgb(Image.fromarray(array))
    raise ImageError(f"{type(source).__name__} is not an image", "give a path, bytes, a Pillow image or a uint8 array")


def check_source(models: Sequence[object], image: Image.Image) -> None:
    """Asks each model that has a method `check(image)` whether it can do anything with this picture, before any work
    is done. It raises ValueError, "problem; mend", if not; that becomes an `ImageError`."""
    for model in models:
        check = getattr(model, "check", None)
        if callable(check):
            try:
                check(image)
            except PremeditateError:
                raise
            except ValueError as error:
                problem, _, mend = str(error).partition("; ")
                raise ImageError(problem, mend) from error


def _open(store: StoreLike) -> tuple[Store, Callable[[], None]]:
    """The store, and what to do when the work is over: a run that was opened here is closed here."""
    if store is None:
        return MemoryStore(), lambda: None
    if isinstance(store, str | os.PathLike):
        run = RunStore(store)
        return run, run.close
    return store, lambda: None


def _run(make: Callable[[], Awaitable[Value]]) -> Value:
    """Runs a coroutine to its end, on a thread of its own where this one already runs an event loop (a notebook)."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def main() -> Value:
        task = asyncio.current_task()
        assert task is not None
        started.append((asyncio.get_running_loop(), task))
        return await make()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    with ThreadPoolExecutor(1, thread_name_prefix="premeditate") as pool:
        future = pool.submit(asyncio.run, main())
        try:
            return future.result()
        except BaseException:
            for loop, task in started if not future.done() else ():
                loop.call_soon_threadsafe(task.cancel)
            raise
