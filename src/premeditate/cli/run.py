"""premeditate run TASKS -o RUN"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import (
    AsJson,
    Chains,
    EarlyStop,
    First,
    History,
    MaxRounds,
    NoReport,
    Refine,
    Seed,
    Spec,
    Stepwise,
    Strategy,
    Timeout,
    Verifier,
)
from premeditate.errors import ExitCode, ImageError, PremeditateError, StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from premeditate.cli.board import Board, Display
    from premeditate.datasets.tasks import BadRow, TaskRow
    from premeditate.engine.runner import Engine
    from premeditate.store import RunStore
    from premeditate.trace import Task, Trace

PAGES = 200
"""Tasks up to which a report is written unasked: its pages hold every picture."""
SUMMARY = "summary.json"


@guarded
def run(
    tasks: Annotated[
        Path,
        typer.Argument(
            help='JSON lines {"image": path, "instruction": words}, a folder with tasks.jsonl, a folder of pictures '
            "with a text beside each (cat.png, cat.txt), or RISEBench's data_total.json."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder of the record.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that RUN holds (or begin it): nothing is made twice.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: try the tasks again that failed.")
    ] = False,
    strategy: Strategy = "think-while-edit",
    max_rounds: MaxRounds = 4,
    chains: Chains = None,
    first: First = "plan",
    refine: Refine = "critic",
    history: History = False,
    early_stop: EarlyStop = True,
    stepwise: Stepwise = False,
    editor: Spec = "micro",
    reasoner: Spec = "micro",
    verifier: Verifier = "reasoner",
    timeout: Timeout = None,
    seed: Seed = 0,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Tasks in work at a time.")] = 64,
    batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Largest batch of edits for a model in this process.")
    ] = 16,
    max_edits: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many edits; what is left can be resumed.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after this many tokens of the reasoner.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.001, help="Stop after this time.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help=f"HTML report [default: report.html in RUN, for up to {PAGES} tasks].", show_default=False),
    ] = None,
    no_report: NoReport = False,
    json_output: AsJson = False,
) -> int:
    """Edit many pictures: as `edit`, for a list of tasks, side by side, kept in RUN and resumable at any moment.

    A task that cannot be read or edited fails by itself; the others go on. RUN/summary.json holds the outcome. Ends
    with 0 if every task has an edit, verified or not; with 5 if a task failed or was left unfinished.
    """
    import asyncio

    from rich.console import Console

    from premeditate.cli.board import Board, Display
    from premeditate.datasets.tasks import count, rows
    from premeditate.engine.budget import Budget
    from premeditate.engine.pool import Policy
    from premeditate.engine.runner import Engine, Limits
    from premeditate.engine.strategies import make_settings
    from premeditate.files import check_writable
    from premeditate.store import RunStore, versions
    from premeditate.viewer.report import write_run

    # Everything that can be found wrong is found wrong before a model is loaded.
    settings = make_settings(
        strategy=strategy, max_rounds=max_rounds, chains=chains, stepwise=stepwise, first=first, refine=refine,
        history=history, early_stop=early_stop, seed=seed,
    )  # fmt: skip
    total, listed = count(tasks), rows(tasks)
    if not total:
        raise PremeditateError(f"{tasks} holds no task", "write one line of JSON per task")
    store = RunStore(output, sync=False)  # safe against a kill; waiting for the disk would hold up every endpoint
    if store.traces() and not resume:
        raise StoreError(f"{output} holds a run already", "add --resume to go on with it, or give another folder")
    page = None if no_report else report or (output / "report.html" if total <= PAGES else None)
    for path in filter(None, (output / SUMMARY, page)):
        check_writable(path)

    console = Console(stderr=True)
    again = "the same command" + ("" if resume else " and --resume")
    with store:
        parts = _load((editor, reasoner, verifier, Policy(timeout=timeout)), console, quiet=json_output)
        board = Board(total)
        engine = Engine(
            *parts, store, settings, limits=Limits(batch, 2 * batch, batch, concurrency),
            budget=Budget(max_edits, max_tokens, max_seconds), on_event=board.on_event, versions=versions(),
        )  # fmt: skip
        source = Source(listed, store, engine, board, retry_failed=retry_failed)
        try:
            with Display(board, console, quiet=json_output) as display:
                asyncio.run(_go(engine, source, board, display))
        except (KeyboardInterrupt, asyncio.CancelledError):
            _write(output, outcome(board, engine, output, None, "interrupted"))
            raise KeyboardInterrupt(f"{board.done} of {total} tasks are done; go on with {again}") from None
        found = outcome(board, engine, output, page, engine.meter.spent() if board.unfinished else None)
        _write(output, found)
        if page is not None:
            write_run(store, page)
    if json_output:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(board, found, again)
    return ExitCode.MODEL if board.unfinished or board.statuses["failed"] else ExitCode.VERIFIED


def _load(words: tuple[Any, ...], console: Console, *, quiet: bool) -> tuple[Any, Any, Any]:
    from contextlib import nullcontext

    from premeditate import api

    waiting = console.is_terminal and not quiet
    with console.status("[dim]loading the models[/dim]") if waiting else nullcontext():
        return api.load_parts(*words)


def _check_same(store: RunStore, record: dict[str, Any]) -> None:
    """Refuses to mix two runs in one folder: what is there was made with the same settings."""
    if not (names := store.traces()):
        return
    before = store.trace(names[0]).settings
    for key, value in record.items():
        if key in before and before[key] != value:
            raise PremeditateError(
                f"{store.path} was made with {key} {before[key]}, not {value}",
                "give the same options again, or another folder",
            )


class Source(Iterable["Task"]):
    """The tasks of a list as the engine draws them (on another thread, one portion at a time): each row's pictures go
    into the store and are forgotten.

    A row that is no task, or whose picture a model was not made for, becomes a task without pictures, which fails with
    the reason. One that failed in an earlier run goes straight to the board, unless `retry_failed`.
    """

    def __init__(
        self, listed: Iterator[TaskRow | BadRow], store: RunStore, engine: Engine, board: Board, *, retry_failed: bool
    ) -> None:
        self.listed, self.store, self.engine, self.board = listed, store, engine, board
        self.known = frozenset() if retry_failed else frozenset(store.traces())
        self.stopped = False
        """Set where nobody wants another task: a portion that is being drawn ends at once."""

    def __iter__(self) -> Iterator[Task]:
        # Only now, that endpoints were asked, are the models' names known.
        _check_same(self.store, self.engine.record)
        for row in self.listed:
            if self.stopped:
                return
            task = self.task(row)
            if (trace := self.failed_before(task)) is not None:
                self.board.ended(trace)
            else:
                yield task

    def task(self, row: TaskRow | BadRow) -> Task:
        from premeditate.api import check_source
        from premeditate.datasets.tasks import BadRow
        from premeditate.trace import Task

        if isinstance(row, BadRow):
            return Task(id=row.id, images=(), instruction=row.instruction, meta={"problem": row.problem})
        try:
            check_source((self.engine.editor, self.engine.reasoner), row.images[0])
        except ImageError as error:
            return Task(id=row.id, images=(), instruction=row.instruction, meta={"problem": str(error)})
        refs = tuple(self.store.put_image(image) for image in row.images)
        return Task(id=row.id, images=refs, instruction=row.instruction, meta=row.meta)

    def failed_before(self, task: Task) -> Trace | None:
        """The last try, where the record says that it failed."""
        from premeditate.engine.walk import tries

        if not self.known:
            return None
        latest, _ = tries(self.store, task, self.engine.record, self.known)
        return latest if latest is not None and latest.finished and latest.error else None


async def _go(engine: Engine, source: Source, board: Board, display: Display) -> None:
    """The run itself. SIGTERM cancels it like Ctrl-C: in order, with everything stored that was made."""
    import asyncio
    from contextlib import aclosing

    watcher = asyncio.create_task(display.watch(engine.loads))
    try:
        with _terminable():
            async with aclosing(engine.stream(source)) as traces:
                async for trace in traces:
                    board.loads = engine.loads()
                    board.ended(trace)
    finally:
        source.stopped = True
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)  # a picture that could not be drawn ends no run


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM cancels this coroutine. Elsewhere it raises in whatever code happens to run, which would do too, but
    leaves it to chance whether a call in flight is told."""
    import asyncio
    import signal

    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None
    before = signal.getsignal(signal.SIGTERM)
    try:
        loop.add_signal_handler(signal.SIGTERM, me.cancel)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


def outcome(board: Board, engine: Engine, run: Path, report: Path | None, stopped: str | None) -> dict[str, Any]:
    """What summary.json and `--json` hold. `edits`, `critiques`, `tokens` and `seconds` are what this command spent;
    `tasks` counts those that an earlier one ended too. `stopped`: why it ended early, None: it did not."""
    statuses = {kind: board.statuses[kind] for kind in ("verified", "unverified", "failed")}
    return {
        "run": str(run),
        "tasks": {"total": board.total, **statuses, "unfinished": board.unfinished},
        "stopped": stopped,
        "edits": board.edits,
        "critiques": board.critiques,
        "tokens": engine.meter.tokens,
        "seconds": round(board.seconds, 3),
        "tasks_per_second": None if board.rate is None else round(board.rate, 4),
        "endpoints": [asdict(load) for load in board.loads],
        "failures": [{"id": name, "why": why} for name, why in board.failures],
        "report": None if report is None else str(report),
        "settings": engine.record,
        "versions": engine.versions,
    }


def _write(run: Path, found: dict[str, Any]) -> None:
    from premeditate.files import write_atomic

    write_atomic(run / SUMMARY, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())


def _show(board: Board, found: dict[str, Any], again: str) -> None:
    from rich.console import Console
    from rich.padding import Padding

    from premeditate.cli.board import STATUSES, duration, loads_table, pace
    from premeditate.cli.progress import LABEL, line, say

    console = Console()
    counts = ", ".join(f"{found['tasks'][kind]} {label}" for kind, label in STATUSES.items() if found["tasks"][kind])
    line(console, "tasks", f"{board.total}: {counts}")
    for failure in found["failures"]:
        name, why = failure["id"], failure["why"]
        line(console, "failed", say(why if why.startswith(name) else f"{name}: {why}"), "red")
    if (more := board.statuses["failed"] - len(found["failures"])) > 0:
        line(console, "", f"[dim]and {more} more[/dim]")
    speed = f" ({pace(board.rate)})" if board.rate else ""
    tokens = f", {found['tokens']:,} tokens" if found["tokens"] else ""
    made = f"{board.edits:,} edits, {board.critiques:,} critiques{tokens}"
    line(console, "made", f"{made} in {duration(board.seconds)}{speed}")
    if board.loads:
        console.print(Padding(loads_table(board.loads), (1, 0, 1, LABEL), expand=False))
    if found["report"]:
        line(console, "report", say(found["report"]))
    line(console, "record", say(found["run"]))
    if found["stopped"] or board.unfinished:
        why = say(found["stopped"] or "the list has become shorter")
        line(console, "unfinished", f"{why}; go on with {say(again)}", "yellow")
