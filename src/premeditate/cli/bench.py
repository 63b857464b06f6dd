"""premeditate bench run, premeditate bench rewards"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from premeditate.cli.bench_rewards import rewards
from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson, Chains, MaxRounds, Spec, Stepwise, Strategy, Verifier

if TYPE_CHECKING:
    from premeditate.engine.walk import OnEvent
    from premeditate.trace import Event, Trace

app = typer.Typer(help="Measure success on a benchmark.", no_args_is_help=True, rich_markup_mode=None)
Benchmark = Literal["microworld"]
Split = Literal["test", "ood", "ood-family", "ood-combo", "train"]


app.command("rewards")(rewards)


@app.command("run")
@guarded
def run(
    benchmark: Annotated[Benchmark, typer.Argument(help="Which benchmark.")],
    n: Annotated[int, typer.Option("--n", min=1, max=100_000, help="How many tasks.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=9_999, help="Which tasks; and the editor's and samplers' seed.")] = 0,
    strategy: Strategy = "think-while-edit",
    split: Annotated[Split, typer.Option(help="test: known families, unseen scenes; ood: held out.")] = "test",
    chains: Chains = None,
    max_rounds: MaxRounds = 4,
    stepwise: Stepwise = False,
    editor: Spec = "micro",
    reasoner: Spec = "micro",
    verifier: Verifier = "reasoner",
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Largest batch for each model; 1: one by one.")] = 32,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps every trace; goes on where it was cut off.", show_default=False),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="With --json: every task's outcome too.")] = False,
    json_output: AsJson = False,
) -> None:
    """Run a benchmark and print success, per kind and dimension, with 95 % intervals, and what it cost.

    Success is measured by the exact checker whatever the loop believed; how often the two disagree stands beside it.
    """
    import json

    from premeditate.benchmarks import microworld
    from premeditate.engine.runner import Limits
    from premeditate.files import check_writable
    from premeditate.store import RunStore

    kept = None
    if store is not None:
        check_writable(store / "events.jsonl")
        kept = RunStore(store, sync=False)
    limits = Limits(
        edits=batch, chats=2 * batch if batch > 1 else 1, samples=batch, tasks=8 * batch if batch > 1 else 1
    )
    try:
        with _Counter(n, show=not json_output) as counter:
            report = microworld.run(
                n, split, seed=seed, strategy=strategy, editor=editor, reasoner=reasoner, verifier=verifier,
                chains=chains, max_rounds=max_rounds, stepwise=stepwise, store=kept, limits=limits,
                on_event=counter.on_event,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the same command goes on from {store}" if store else "nothing is kept without --store"
        ) from None
    finally:
        if kept is not None:
            kept.close()
    if json_output:
        print(json.dumps(report.to_json(rows=rows)))
    else:
        from rich.console import Console

        Console().print(report)


class _Counter:
    """A bar of finished tasks on stderr, if it is a terminal; `on_event` is what moves it."""

    def __init__(self, total: int, *, show: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
            disable=not (show and console.is_terminal),
        )  # fmt: skip
        self.task = self.bar.add_task("tasks", total=total)

    def __enter__(self) -> _Counter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @property
    def on_event(self) -> OnEvent:
        def count(trace: Trace, event: Event) -> None:
            if event.type == "finished":
                self.bar.advance(self.task)

        return count
