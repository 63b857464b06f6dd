"""premeditate data rrm TASKS -o FOLDER"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson, Seed, Timeout

if TYPE_CHECKING:
    from premeditate.cli.making import Progress
    from premeditate.synthesis.parts import Parts
    from premeditate.synthesis.settings import Settings
    from premeditate.synthesis.source import Source

app = typer.Typer(help="Training data, made with models.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Keeps `rrm` a subcommand."""


@app.command("rrm")
@guarded
def rrm(
    tasks: Annotated[
        str, typer.Argument(help="A list of tasks as `premeditate run` takes it, or module:function of (count, seed).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the data.")],
    count: Annotated[
        int | None, typer.Option(min=1, help="Tasks [default: all of a list].", show_default=False)
    ] = None,
    editor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Makes edits; may be repeated. Preset, folder, hub id, address or module:attribute [default: micro].",
            show_default=False,
        ),
    ] = None,
    edits_per_editor: Annotated[int, typer.Option(min=1, max=64, help="Edits of a task by each editor.")] = 1,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[FORM:]SPEC",
            help="Thinks and judges; may be repeated. joint:SPEC (one answer holds all), apart:SPEC (one question per "
            "principle, and a critique) [default: apart:micro].",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Of a candidate of each judge; may be repeated [default: 0, 0.7, 1].", show_default=False),
    ] = None,
    verifier: Annotated[
        str,
        typer.Option(metavar="USE", help="Gives the gold verdicts: exact, reasoner:SPEC, or another verifier's use."),
    ] = "exact",
    reasoner: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Writes principles for tasks that bring none.", show_default=False),
    ] = None,
    min_accuracy: Annotated[
        float, typer.Option(help="Of the candidate that is kept, 0-1; an edit below it is not.")
    ] = 0.0,
    shard_size: Annotated[int, typer.Option(min=1, max=4096, help="Tasks in a shard.")] = 64,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Make every N-th shard, from the I-th: for N machines.")
    ] = "1/1",
    at_once: Annotated[
        int, typer.Option(min=1, max=64, help="Shards in work side by side; more keep several endpoints busy.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Make the shards that FOLDER lacks.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many calls this takes, and stop.")] = False,
    seed: Seed = 0,
    timeout: Timeout = None,
    json_output: AsJson = False,
) -> None:
    """Make judged edits for a reasoning reward model: instructions, principles, edits, judgements, gold, selection.

    Each edit gets several judgements, a verdict on each principle by the verifier, and keeps the judgement whose
    verdicts are most often the verifier's. Nothing is left out silently: the datasheet in FOLDER counts it.
    """
    from rich.console import Console

    from premeditate.address import shown
    from premeditate.cli import making
    from premeditate.engine.pool import Policy
    from premeditate.files import check_writable
    from premeditate.synthesis import parts as models
    from premeditate.synthesis.run import Part, begin, whole
    from premeditate.synthesis.settings import FILE, JudgeSpec, Settings

    # Everything that can be found wrong is found wrong before a model is loaded.
    editors, judges = editor or ["micro"], [JudgeSpec.parse(text) for text in judge or ["apart:micro"]]
    temperatures = temperature or [0.0, 0.7, 1.0]
    mine, source = Part.parse(part), _source(tasks, count, seed)
    settings = Settings(
        tasks=tasks, digest=source.digest, count=count, seed=seed, shard_size=shard_size,
        editors=tuple(map(shown, editors)), edits_per_editor=edits_per_editor,
        judges=tuple(one.name for one in judges), temperatures=tuple(temperatures),
        reasoner=None if reasoner is None else shown(reasoner), verifier=shown(verifier), min_accuracy=min_accuracy,
    ).check()  # fmt: skip
    total = source.shards(shard_size)
    missing = begin(output, settings, mine, total, resume=resume or dry_run)
    if dry_run:
        _dry_run(settings, source, missing, json_output)
        return
    check_writable(output / FILE)
    again = "go on with the same command" + ("" if resume else " and --resume")
    with making.Progress(
        Console(stderr=True), whole(output), len(missing), total, source.size_of(missing, shard_size), quiet=json_output
    ) as progress:
        parts = models.load(editors, judges, temperatures, verifier, reasoner, Policy(timeout=timeout))
        try:
            found = asyncio.run(_make(source, parts, settings, output, missing, at_once, progress))
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise KeyboardInterrupt(f"{whole(output)} of {total} shards are whole; {again}") from None
    if json_output:
        print(json.dumps({"folder": str(output), **found}, ensure_ascii=False))
    else:
        making.show(found, str(output), again)


async def _make(
    source: Source,
    parts: Parts,
    settings: Settings,
    output: Path,
    missing: list[int],
    at_once: int,
    progress: Progress,
) -> dict[str, Any]:
    from premeditate.synthesis.run import make

    watcher = asyncio.create_task(progress.watch(parts))
    try:
        return await make(
            source, parts, settings, output, missing, at_once=at_once, say=progress.stage_of, made=progress.made
        )
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


def _dry_run(settings: Settings, source: Source, missing: list[int], json_output: bool) -> None:
    from itertools import chain, islice

    from premeditate.cli import making
    from premeditate.synthesis.estimate import LOOKED, calls

    size = settings.shard_size
    tasks = source.size_of(missing, size)
    rows = chain.from_iterable(rows for _, rows in source.portions(size, set(missing).__contains__))
    found = calls(settings, islice(rows, LOOKED), tasks)
    found = {"shards": {"missing": len(missing), "total": source.shards(size)}, **found}
    if json_output:
        print(json.dumps(found, ensure_ascii=False))
    else:
        making.show_calls(found)


def _source(tasks: str, count: int | None, seed: int) -> Source:
    """Raises ValueError for tasks that are none."""
    from premeditate.attribute import is_attribute
    from premeditate.synthesis.source import Source

    if is_attribute(tasks, or_file=True):
        from premeditate.training.data import load_rows

        return Source.of(load_rows(tasks, count, seed))
    return Source.read(Path(tasks), count)
