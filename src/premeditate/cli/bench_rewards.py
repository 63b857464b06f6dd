"""premeditate bench rewards"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson


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
            help="editreward, editreward-bench, genai-bench or editscore-bench [default: told by the rows].", show_default=False
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
) -> None:
    """Measure a judge: how often it prefers the edit that people, or the exact checker, prefer.

    Every figure comes with its 95 % interval and with the share of pairs that could be scored at all. Exit code 5 where
    none could.
    """
    import json

    from premeditate import presets
    from premeditate.benchmarks.reward_models import run
    from premeditate.benchmarks.reward_models.calibration import NoDiagram, draw
    from premeditate.benchmarks.reward_models.seeds import reseeding
    from premeditate.engine.pooled import pooled
    from premeditate.errors import ModelError
    from premeditate.files import check_writable
    from premeditate.rewards.specs import load_reward

    if diagram is not None:
        check_writable(diagram)
    judge = reseeding(reward, lambda spec: pooled(presets.load_reasoner(spec)))
    # Only the exact checker knows the answer to a question.
    checker: Any = getattr(load_reward("exact"), "verifier", None) if data in run.PAIRS else None
    pairs = run.load_pairs(data, n, seed, root=root, format=format)
    report = run.evaluate(
        judge,
        pairs,
        score=_score(score or []),
        repeats=repeats,
        batch=batch,
        timeout=timeout,
        checker=checker,
        data=data,
    )
    if not any(value is not None for row in report.rows for pair in row.scores for value in pair):
        why = report.bad[0].problem if report.bad and not report.rows else report.statuses
        count = len(report.rows) + len(report.bad)
        raise ModelError(f"no edit of {count} pairs could be scored ({why})", "mend that first")
    if diagram is not None:
        if report.reliability is None:
            raise NoDiagram("the judge answers no questions that can be checked", "use a checklist on the pairs micro")
        draw(report.reliability, diagram, title=report.settings["reward"])
    if json_output:
        print(json.dumps(report.to_json(rows=rows)))
    else:
        from rich.console import Console

        Console().print(report)


def _score(words: list[str]) -> str | dict[str, str] | None:
    named = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1 or (plain and named) or len(named) + len(plain) != len(words):
        raise ValueError("--score is given twice; give one NAME, or PAIRS=NAME once for each dimension of the pairs")
    return plain[0] if plain else named or None
