"""premeditate edit IMAGE INSTRUCTION"""

from __future__ import annotations

import json
import secrets
import time
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
from premeditate.errors import ExitCode, ModelError, PremeditateError

if TYPE_CHECKING:
    from premeditate.api import Result
    from premeditate.engine.walk import OnEvent
    from premeditate.store import RunStore
    from premeditate.trace import Trace


@guarded
def edit(
    image: Annotated[str, typer.Argument(help="The picture to edit (PNG, JPEG, WebP, GIF, BMP or TIFF).")],
    instruction: Annotated[str, typer.Argument(help="What to do, in words; it may need thought.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Edited picture [default: IMAGE's name with -edited.png, here].", show_default=False
        ),
    ] = None,
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
    report: Annotated[
        Path | None,
        typer.Option(help="HTML report [default: like the edited picture, with .html].", show_default=False),
    ] = None,
    no_report: NoReport = False,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run's record; an existing run is added to, and an edit it already holds is "
            "not made again [default: a new folder in runs/, beside the picture].",
            show_default=False,
        ),
    ] = None,
    json_output: AsJson = False,
) -> int:
    """Edit a picture: plan, edit, look, check item by item, edit again where needed, keep the best verified round.

    Writes the edited picture, an HTML report and a record. Ends with 0 only if the result was verified, with 1 if
    none was (the best round is written all the same).
    """
    from premeditate import images
    from premeditate.engine.pool import Policy
    from premeditate.engine.strategies import make_settings
    from premeditate.errors import check_instruction
    from premeditate.store import RunStore

    # Everything that can be found wrong is found wrong before a model is loaded.
    make_settings(strategy=strategy)
    instruction = check_instruction(instruction)
    source = images.load(image)
    out = output or Path(f"{Path(image).stem}-edited.png")
    images.check_output(out)
    page = None if no_report else report or out.with_suffix(".html")
    if page is not None:
        if page.expanduser().resolve() == out.expanduser().resolve():
            raise PremeditateError(f"the report and the picture would both be {page}", "give another --report")
        images.check_writable(page)
    run_path = (
        store or out.parent / "runs" / f"{_slug(out.stem)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )
    images.check_writable(run_path / "events.jsonl")
    run = RunStore(run_path)
    work: dict[str, Any] = {
        "editor": editor, "reasoner": reasoner, "verifier": verifier, "strategy": strategy, "max_rounds": max_rounds,
        "chains": chains, "stepwise": stepwise, "first": first, "refine": refine, "history": history,
        "early_stop": early_stop, "seed": seed, "store": run, "policy": Policy(timeout=timeout),
    }  # fmt: skip
    began = time.perf_counter()
    try:
        with run:
            try:
                result = _work(source, instruction, image, work, show=not json_output)
            except ModelError as error:  # the record of a failed edit is worth a page too
                if run.path.exists() and (held := run.traces()):
                    where = _write_page(page, run.trace(held[-1]), run) or run_path
                    raise ModelError(error.problem, f"{error.mend}; the record: {where}") from error
                raise
            images.save(result.image, out)
            _write_page(page, result.trace, run)
    except KeyboardInterrupt:
        kept = f"the record so far: premeditate report {run_path}" if run_path.exists() else "nothing was written"
        raise KeyboardInterrupt(kept) from None
    spent = time.perf_counter() - began
    if json_output:
        print(json.dumps(summary(result, out, page, run_path, spent), ensure_ascii=False))
    else:
        _show(result, out, page, run_path, spent)
    return ExitCode.VERIFIED if result.verified else ExitCode.NOT_VERIFIED


def _write_page(page: Path | None, trace: Trace, run: RunStore) -> Path | None:
    if page is None:
        return None
    from premeditate.files import write_atomic
    from premeditate.viewer.report import render

    write_atomic(page, render(trace, run).encode())
    return page


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text).strip("-")[:60] or "edit"


def _work(source: Any, instruction: str, name: str, work: dict[str, Any], *, show: bool) -> Result:
    from premeditate import api

    def run(on_event: OnEvent | None) -> Result:
        # Loaded here, on the main thread, where Ctrl-C interrupts at once; a helper thread would have to end first.
        parts = api.load_parts(work["editor"], work["reasoner"], work["verifier"], work["policy"])
        models = dict(zip(("editor", "reasoner", "verifier"), parts, strict=True))
        return api.edit(source, instruction, on_event=on_event, **{**work, **models})

    if not show:
        return run(None)
    from rich.console import Console

    from premeditate.address import shown
    from premeditate.cli.progress import Progress, say

    console = Console()
    console.print(f"[bold]{say(instruction)}[/bold]", highlight=False, soft_wrap=True)
    console.print(
        f"[dim]{say(name)}, {source.width} x {source.height}; {work['strategy']}; editor {say(shown(work['editor']))}, "
        f"reasoner {say(shown(work['reasoner']))}[/dim]",
        highlight=False,
        soft_wrap=True,
    )
    console.print()
    with Progress(console) as progress:
        result = run(progress)
    if not progress.seen:
        progress.line("record", "this edit was made before; nothing was run again")
        progress.chosen(result.trace)
    return result


def _show(result: Result, out: Path, page: Path | None, run: Path, spent: float) -> None:
    from rich.console import Console

    from premeditate.cli.progress import line, say
    from premeditate.viewer.report import seconds

    console = Console()
    rows = [("image", str(out)), *([("report", str(page))] if page else []), ("record", str(run))]
    for label, text in rows:
        line(console, label, say(text))
    word = "[bold green]verified[/bold green]" if result.verified else "[bold yellow]not verified[/bold yellow]"
    console.print(f"{word}   [dim]{seconds(spent)}[/dim]", highlight=False)


def summary(result: Result, out: Path, page: Path | None, run: Path, spent: float) -> dict[str, Any]:
    """What `--json` prints: the API's summary (rounds and chains count from 0, as in the trace) and what was written.
    `seconds` is the edit's own time, `seconds_total` counts the loading of models too."""
    return {
        **result.summary(),
        "prompt": result.chosen.prompt,
        "image": str(out),
        "report": None if page is None else str(page),
        "store": str(run),
        "settings": result.trace.settings,
        "versions": result.trace.versions,
        "seconds_total": round(spent, 3),
    }
