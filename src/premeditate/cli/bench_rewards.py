"""premeditate bench rewards"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson
from premeditate.errors import ExitCode, ModelError, PremeditateError

if TYPE_CHECKING:
    from premeditate.benchmarks.reward_models.report import Report


@guarded
def rewards(
    data: Annotated[
        str,
        typer.Argument(help='Pairs: "micro" (made, and judged by the exact checker), or a JSON or JSON lines file.'),
    ],
    reward: Annotated[
        str,
        typer.Option("--reward", metavar="USE", help="The judge, as recipes name it: exact, reasoner:SPEC, http://..."),
    ] = "reasoner:micro",
    n: Annotated[int, typer.Option("--n", min=1, help="How many pairs at most.")] = 500,
    seed: Annotated[
        int, typer.Option(min=0, max=9_999, help="Which made pairs; which of a file are turned round.")
    ] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, max=64, help="Score every edit so often, pairs turned round every other time.")
    ] = 1,
    score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="The judge's dimension that is compared; PAIRS=NAME for one dimension of the pairs [default: mean].",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the pictures [default: the file's].", show_default=False)
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="editreward, editreward-bench, genai-bench or editscore-bench [default: told by the rows].",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Pairs in a call.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a call.")] = 600.0,
    diagram: Annotated[
        Path | None,
        typer.Option(help="Draw the reliability of the judge's probabilities here (PNG).", show_default=False),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="With --json: every pair too.")] = False,
    json_output: AsJson = False,
) -> int:
    """Measure a judge: how often it prefers the edit that people, or the exact checker, prefer.

    Every figure comes with its 95 % interval and with the share of pairs that could be scored at all. Exit code 5 where
    none could.
    """
    import json

    from rich.console import Console

    from premeditate import presets
    from premeditate.benchmarks.reward_models import run
    from premeditate.benchmarks.reward_models.calibration import NoDiagram, draw
    from premeditate.benchmarks.reward_models.seeds import reseeding
    from premeditate.cli.measuring import Measuring
    from premeditate.engine.pooled import pooled
    from premeditate.rewards.specs import load_reward

    # Everything that can be found wrong is found wrong before a model is loaded.
    if diagram is not None:
        _check_diagram(diagram, data)
    wanted = _score(score or [])
    pairs = run.load_pairs(data, n, seed, root=root, format=format)
    if isinstance(wanted, dict) and not run.is_made(data):
        run.check_score(wanted, _dimensions(Path(data), n, format))
    judge = reseeding(reward, lambda spec: pooled(presets.load_reasoner(spec)))
    # Only the exact checker knows the answer to a question.
    checker: Any = getattr(load_reward("exact"), "verifier", None) if data in run.PAIRS else None
    with Measuring(Console(stderr=True), quiet=json_output) as progress:
        report = run.evaluate(
            judge, pairs, score=wanted, repeats=repeats, batch=batch, timeout=timeout, checker=checker, data=data,
            on_pair=progress,
        )  # fmt: skip
    _check_scored(report, data)
    if json_output:
        print(json.dumps(report.to_json(rows=rows)))
    else:
        Console().print(report)
    if diagram is None:
        return ExitCode.VERIFIED
    # What was measured is printed, whatever becomes of the picture.
    try:
        if report.reliability is None:
            raise NoDiagram("the judge answers no questions that can be checked", "leave --diagram out")
        draw(report.reliability, diagram, title=report.settings["reward"])
    except PremeditateError as error:
        typer.echo(f"premeditate: {error}", err=True)
        return error.exit_code
    return ExitCode.VERIFIED


def _check_diagram(path: Path, data: str) -> None:
    """Raises for a diagram that cannot be had, whatever the judge says."""
    from importlib.util import find_spec

    from premeditate.benchmarks.reward_models.calibration import NoDiagram
    from premeditate.benchmarks.reward_models.run import PAIRS
    from premeditate.files import check_writable

    check_writable(path)
    if data not in PAIRS:
        raise NoDiagram(
            f"nobody knows the right answers to questions about {data}: their reliability cannot be drawn",
            f"leave --diagram out, or measure on {', '.join(PAIRS)}",
        )
    if find_spec("matplotlib") is None:
        raise NoDiagram("diagrams are drawn with matplotlib, which is not installed", "pip install matplotlib")


def _dimensions(path: Path, n: int, format: str | None) -> set[str]:
    """What the first `n` pairs of a file are about."""
    from itertools import islice

    from premeditate.datasets.preferences import PairPaths, listed

    return {one.dimension for one in islice(listed(path, format=format), n) if isinstance(one, PairPaths)}


def _check_scored(report: Report, data: str) -> None:
    """Raises `ModelError` where nothing was measured, and says why."""
    if any(value is not None for row in report.rows for pair in row.scores for value in pair):
        return
    if not report.rows and not report.bad:
        raise ModelError(f"{data} holds no pairs", "give a file of pairs, or micro")
    if not report.rows:
        why = f"none of {len(report.bad)} rows of {data} is a pair ({report.bad[0].problem})"
        raise ModelError(why, "mend the rows, or say where the pictures are (--root) and what the rows are (--format)")
    reason, times = max(report.reasons.items(), key=lambda item: item[1])
    raise ModelError(
        f"no edit of {len(report.rows)} pairs could be scored (of {sum(report.reasons.values())} answers {times}: "
        f"{reason})", "put that right, or ask another --reward",
    )  # fmt: skip


def _score(words: list[str]) -> str | dict[str, str] | None:
    named = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1 or (plain and named) or len(named) + len(plain) != len(words):
        raise ValueError("--score is given twice; give one NAME, or PAIRS=NAME once for each dimension of the pairs")
    return plain[0] if plain else named or None
