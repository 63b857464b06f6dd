"""premeditate train RECIPE [key.sub=value ...]"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson

if TYPE_CHECKING:
    from premeditate.training.kinds import AnyRecipe


@guarded
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes of the recipe, as in optimizer.lr=1e-4."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the run [default: the recipe's].", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint (or begin, where there is none).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and what it costs, and stop.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --dry-run: how many [default: those that torchrun starts, else 1].", show_default=False
        ),
    ] = None,
    json_output: AsJson = False,
) -> None:
    """Train an editor by reinforcement learning, or a judge of edits.

    The recipe says everything; the run's folder gets checkpoints, a log, pictures and in the end the trained weights.
    Its `kind` says what is trained: an editor, a judge on judged edits (sft), a judge on preferred pairs (gcpo).
    Killed or interrupted, the same command and --resume goes on from the last checkpoint as if nothing had been. On
    several devices: torchrun --nproc-per-node N -m premeditate.cli train RECIPE.
    """
    from premeditate.config import find_recipe, load_kind
    from premeditate.errors import PremeditateError
    from premeditate.files import check_writable
    from premeditate.training.kinds import EDITOR, RECIPES

    made: AnyRecipe = load_kind(RECIPES, find_recipe(recipe), overrides or [], default=EDITOR)
    if out is not None:
        made = made.model_copy(update={"out": str(out)})
    if devices is not None and not dry_run:
        raise PremeditateError("--devices says what --dry-run is to count with", "start several with torchrun")
    count = devices or int(os.environ.get("WORLD_SIZE", "1"))
    if dry_run:
        from premeditate.cli.train_plan import show

        show(made, count, json_output)
        return
    check_writable(Path(made.out) / "log.jsonl")
    _train(made, count, resume, json_output, _command(recipe, overrides or [], out))


def _command(recipe: str, overrides: list[str], out: Path | None) -> str:
    """What goes on with the run."""
    return shlex.join(["premeditate", "train", recipe, *overrides, *(["--out", str(out)] if out else []), "--resume"])


def _train(recipe: AnyRecipe, devices: int, resume: bool, json_output: bool, again: str) -> None:
    from rich.console import Console

    from premeditate.cli.steps import Progress
    from premeditate.local import quiet
    from premeditate.training.kinds import trainer

    _check(recipe, devices)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one speaks
    with Progress(recipe.steps, Console(stderr=True), quiet=json_output or not first) as progress:
        try:
            train = trainer(recipe)
            with quiet("diffusers", "transformers", loading=True):
                found = train(recipe, resume=resume, say=progress.notice, on_figures=progress.figures)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(recipe, again)) from None
    if not first:
        return
    if json_output:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False))
    else:
        _show(found, time.monotonic() - progress.began)


def _check(recipe: AnyRecipe, devices: int) -> None:
    """What can be found wrong is found wrong before a model is loaded."""
    from premeditate.errors import PremeditateError
    from premeditate.training import trackers
    from premeditate.training.geometry import Geometry
    from premeditate.training.sft.recipe import SftRecipe

    trackers.check(recipe.logging.to)
    if isinstance(recipe, SftRecipe):
        return  # which looks at its batch by itself
    Geometry.of(recipe, devices)
    if recipe.sharding.kind != "none" and devices == 1:
        raise PremeditateError(
            "sharding.kind=fsdp splits weights over several devices, and this is one",
            "start with torchrun --nproc-per-node N -m premeditate.cli train ..., or give sharding.kind=none",
        )


def _how_to_go_on(recipe: AnyRecipe, again: str) -> str:
    from premeditate.training import checkpoint
    from premeditate.training.sft import checkpoints

    kept = checkpoints if recipe.kind == "sft" else checkpoint
    step = kept.newest(Path(recipe.out))
    if step is None:
        return "no checkpoint was written yet; the same command begins again"
    return f"the last checkpoint is of step {step}; go on with: {again}"


def _show(found: Mapping[str, Any], seconds: float) -> None:
    from rich.console import Console

    from premeditate.cli.board import duration
    from premeditate.cli.progress import line, say
    from premeditate.cli.steps import evaluated

    console = Console()
    line(console, "trained", f"{found['steps']} steps in {duration(seconds)}")
    for when in ("before", "after"):
        figures = {k: v for k, v in found[when].items() if v is not None}
        line(console, when, "  ".join(evaluated(figures)) or "[dim]no held-out tasks[/dim]")
    line(console, "export", say(str(found["export"])))
    line(console, "record", say(str(found["out"])))
    line(console, "try", say(f"how to load it: {found['export']}/README.md"))
