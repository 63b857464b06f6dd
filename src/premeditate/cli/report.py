"""premeditate report RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from premeditate.cli.guard import guarded


@guarded
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run: what `edit` calls the record.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="HTML file to write [default: report.html in RUN].", show_default=False),
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Only this trace.", show_default=False)] = None,
) -> None:
    """Write a run's HTML page: the report of its one edit, or an index with a report per edit beside it.

    Works on finished, running and interrupted runs alike.
    """
    from premeditate.errors import StoreError
    from premeditate.files import check_writable, write_atomic
    from premeditate.store import RunStore
    from premeditate.viewer.report import render, write_run

    store = RunStore.open(run)
    out = output or store.path / "report.html"
    check_writable(out)
    if trace is not None:
        if trace not in store.traces():
            raise StoreError(f"{run} holds no trace {trace}", f"it holds {', '.join(store.traces()[:5]) or 'none'}")
        files = [write_atomic(out, render(store.trace(trace), store).encode())]
    else:
        files = write_run(store, out)
    typer.echo(str(out) + (f" and {len(files) - 1} reports beside it" if len(files) > 1 else ""))
