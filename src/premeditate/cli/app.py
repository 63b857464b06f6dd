"""The command tree."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from premeditate.cli import bench, checklist, data, doctor, edit, microworld, models, report, rewards, run, score, train

EPILOG = (
    "Exit codes: 0 done (edit: a round was verified), 1 done but not verified, 2 wrong usage, 3 unusable image, "
    "4 unusable instruction, 5 model failed to load or run, 6 output not writable, 7 unreadable run, 70 defect in "
    "Premeditate, 130 interrupted. PREMEDITATE_DEBUG=1 shows tracebacks."
)

app = typer.Typer(
    name="premeditate",
    help="Image editing that thinks first: plan, edit, look, check item by item, and keep the record of why.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich costs a third of the start-up budget
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from premeditate import __version__

        typer.echo(f"premeditate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    # A name or a model's word that the terminal cannot show must not end the command with a UnicodeEncodeError.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


app.command("edit", epilog=EPILOG)(edit.edit)
app.command("run", epilog=EPILOG)(run.run)
app.command("checklist", epilog=EPILOG)(checklist.checklist)
app.command("score", epilog=EPILOG)(score.score)
app.command("report")(report.report)
app.command("train")(train.train)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(microworld.app, name="microworld")
app.add_typer(rewards.app, name="rewards")
