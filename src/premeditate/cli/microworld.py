"""premeditate microworld"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from premeditate.cli.guard import guarded

app = typer.Typer(help="The micro world: tasks, and its tiny models.", no_args_is_help=True, rich_markup_mode=None)
Split = Literal["train", "test", "ood", "ood-family", "ood-combo"]
Model = Literal["editor", "reasoner"]


@app.command()
@guarded
def sample(
    n: Annotated[int, typer.Argument(min=1, max=100_000, help="How many tasks.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder for tasks.jsonl and images.")],
    seed: Annotated[int, typer.Option(min=0, max=9_999, help="Different seeds give different tasks.")] = 0,
    split: Annotated[Split, typer.Option(help="Which tasks.")] = "train",
) -> None:
    """Write N tasks with their pictures, targets, plans and checklists, in the project's task format."""
    from premeditate.files import check_writable
    from premeditate.microworld import dataset

    check_writable(output / "tasks.jsonl")
    count = dataset.sample(output, n, seed, split)
    typer.echo(f"{count} tasks in {output}")


@app.command()
@guarded
def train(
    what: Annotated[Model, typer.Argument(help="Which tiny model.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the model; OUTPUT-base gets the early one.")
    ],
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Training time [default: editor 83, reasoner 90].", show_default=False),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of minutes: this many steps, a run that depends on the seed only."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; otherwise a run in OUTPUT is continued.")] = False,
    n: Annotated[int, typer.Option("--n", min=16, help="Held-out tasks per figure of the model card.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Reasoner only: a second course for this one, with its own mistakes among "
            "the lessons [default minutes: 30].",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a tiny model from nothing, on a CPU, and write its model card with the curves.

    Minutes are CPU time: a busy machine makes a run longer, not worse. Killed or interrupted, the same command
    continues from the last checkpoint.
    """
    from premeditate.files import check_writable
    from premeditate.local import quiet

    check_writable(output / "log.jsonl")
    if start is not None and what == "editor":
        raise ValueError("only a reasoner takes a second course; leave out --start")
    try:
        with quiet("diffusers", "transformers", loading=True):
            if what == "editor":
                _train_editor(output, minutes, steps, seed, fresh, n, threads)
            else:
                _train_reasoner(output, minutes, steps, seed, fresh, n, threads, start)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues from the last checkpoint") from None
    typer.echo(f"{what} in {output}; try it: premeditate edit IMAGE INSTRUCTION --{what} {output}")


def _train_editor(
    out: Path, minutes: float | None, steps: int | None, seed: int, fresh: bool, n: int, threads: int
) -> None:
    from premeditate.microworld.models.editor_train import train_editor

    seconds = 60 * (minutes or 83)
    train_editor(out, seconds=seconds, steps=steps, seed=seed, resume=not fresh, log=_log, final_n=n, threads=threads)


def _train_reasoner(
    out: Path, minutes: float | None, steps: int | None, seed: int, fresh: bool, n: int, threads: int,
    start: str | None,
) -> None:  # fmt: skip
    import json

    from premeditate import presets
    from premeditate.microworld.models.reasoner_card import write_card
    from premeditate.microworld.models.reasoner_eval import evaluate_reasoner
    from premeditate.microworld.models.reasoner_train import train_reasoner

    begin = None if start is None else Path(presets.resolve("reasoner", start).spec)
    seconds = None if steps and not minutes else 60 * (minutes or (90 if begin is None else 30))
    resume = not fresh and (out / "checkpoint.pt").exists()
    train_reasoner(out, seconds=seconds, steps=None if seconds else steps, seed=seed, resume=resume, log=typer.echo,
                   threads=threads, start=begin)  # fmt: skip
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    setting = f"premeditate microworld train reasoner --seed {seed}" + (f" --steps {steps}" if steps else "")
    setting += "" if start is None else f" --start {start}"
    base = out.with_name(out.name + "-base")
    for folder, title, note in (
        (out, "Micro-world reasoner", "The best checkpoint."),
        (base, "Micro-world reasoner (base)", "A deliberately unfinished checkpoint: room for later training."),
    ):
        if (folder / "config.json").exists():
            write_card(folder, title, note, evaluate_reasoner(folder, n), rows, setting)


def _log(row: dict[str, Any]) -> None:
    """A row of a training log on one line."""
    shown = ((k, f"{v:.4g}" if isinstance(v, float) else v) for k, v in row.items() if not isinstance(v, dict))
    typer.echo("  ".join(f"{k} {v}" for k, v in shown))
    if isinstance(found := row.get("evaluation"), dict):
        typer.echo("  exact  " + "  ".join(f"{k} {v:.3f}" for k, v in found.items() if isinstance(v, float)))


@app.command()
@guarded
def evaluate(
    what: Annotated[Model, typer.Argument(help="Which tiny model.")],
    model: Annotated[str, typer.Option("--model", metavar="SPEC", help="Preset or folder.")] = "micro",
    n: Annotated[int, typer.Option("--n", min=16, help="Held-out tasks per figure.")] = 1000,
    split: Annotated[Split, typer.Option(help="Reasoner only: which tasks.")] = "test",
    seed: Annotated[int, typer.Option(min=0, max=9_999, help="Which held-out tasks.")] = 0,
) -> None:
    """Measure a tiny model on held-out scenes and print the figures, with 95 % intervals, as JSON."""
    import json

    from premeditate import presets
    from premeditate.local import quiet

    folder = Path(presets.resolve(what, model).spec)
    figures: dict[str, Any]
    with quiet("diffusers", "transformers", loading=True):
        if what == "editor":
            from premeditate.microworld.models.editor_eval import evaluate_editor
            from premeditate.microworld.tasks import TEST_SEEDS

            figures = evaluate_editor(folder, n, TEST_SEEDS + seed)
        else:
            from premeditate.microworld.models.reasoner_eval import evaluate_reasoner

            figures = evaluate_reasoner(folder, n, seed, split)
    typer.echo(json.dumps(figures, indent=1))
