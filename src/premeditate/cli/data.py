"""premeditate data rrm TASKS -o FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson, Seed, Timeout

if TYPE_CHECKING:
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
    balance: Annotated[str, typer.Option(help="How verdicts are evened out; none is the only way so far.")] = "none",
    shard_size: Annotated[int, typer.Option(min=1, max=4096, help="Tasks in a shard.")] = 64,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Make every N-th shard, from the I-th: for N machines.")
    ] = "1/1",
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
    import asyncio

    from premeditate.address import shown
    from premeditate.engine.pool import Policy
    from premeditate.errors import PremeditateError
    from premeditate.synthesis import parts as models
    from premeditate.synthesis.run import Part, begin, make
    from premeditate.synthesis.settings import JudgeSpec, Settings

    if balance != "none":
        raise PremeditateError(f"--balance is {balance!r}", "none is the only way so far")
    editors, chosen = editor or ["micro"], [JudgeSpec.parse(text) for text in judge or ["apart:micro"]]
    temperatures = temperature or [0.0, 0.7, 1.0]
    mine = Part.parse(part)
    source = _source(tasks, count, seed)
    settings = Settings(
        tasks=tasks, digest=source.digest, count=count, seed=seed, shard_size=shard_size,
        editors=tuple(map(shown, editors)), edits_per_editor=edits_per_editor,
        judges=tuple(one.name for one in chosen), temperatures=tuple(temperatures),
        reasoner=None if reasoner is None else shown(reasoner), verifier=shown(verifier), min_accuracy=min_accuracy,
        balance="none",
    ).check()  # fmt: skip
    missing = begin(output, settings, mine, source.shards(shard_size), resume=resume)
    parts = models.load(editors, chosen, temperatures, verifier, reasoner, Policy(timeout=timeout))

    def made(number: int, counts: Any) -> None:
        print(
            f"shard {number}: {counts.kept} of {counts.asked} edits kept, {dict(counts.lost)}",
            counts.seconds,
            file=sys.stderr,
            flush=True,
        )

    try:
        asyncio.run(make(source, parts, settings, output, missing, made=made))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command with --resume goes on") from None


def _source(tasks: str, count: int | None, seed: int) -> Source:
    from premeditate.synthesis.parts import is_attribute
    from premeditate.synthesis.source import Source

    if is_attribute(tasks):
        from premeditate.training.data import load_rows

        return Source.of(load_rows(tasks, count, seed))
    return Source.read(Path(tasks), count)
