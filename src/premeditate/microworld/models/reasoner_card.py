"""The reasoner's model card: what it is, how it was made, how it does, and its curves as a small SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SKILLS = (("plan", "#d1495b"), ("checklist", "#2e7f9f"), ("answer", "#5b8c3a"), ("critique", "#8a5fbf"))
WIDTH, HEIGHT, LEFT, TOP = 640, 260, 44, 16


def curves(rows: list[dict[str, Any]]) -> str:
    """An SVG of the four skills against seconds of training, from the log's "look" rows."""
    looks = [r for r in rows if r.get("event") == "look"]
    end = max((r["seconds"] for r in looks), default=1.0) or 1.0
    wide, high = WIDTH - LEFT - 96, HEIGHT - TOP - 36
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for percent in (0, 25, 50, 75, 100):
        y = TOP + high * (1 - percent / 100)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}h{wide}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{percent}%</text>'
        )
    parts.append(
        f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">'
        f"0 to {end:.0f} seconds of training, one core</text>"
    )
    for number, (skill, colour) in enumerate(SKILLS):
        points = " ".join(
            f"{LEFT + wide * r['seconds'] / end:.1f},{TOP + high * (1 - r[skill]):.1f}" for r in looks if skill in r
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{LEFT + wide + 8}" y="{TOP + 14 + 16 * number}" fill="{colour}">{skill}</text>'
        )
    return "".join(parts) + "</svg>\n"


def _line(name: str, row: dict[str, Any]) -> str:
    return f"| {name} | {100 * row['rate']:.1f} | {100 * row['low']:.1f} to {100 * row['high']:.1f} | {row['n']} |"


def card(title: str, note: str, result: dict[str, Any], rows: list[dict[str, Any]], setting: str) -> str:
    """The README of a reasoner folder. `result`: from `evaluate_reasoner`. `rows`: the training log."""
    names = {
        "plan": "plan executes to the target",
        "checklist": "checklist equals the true one",
        "answer": "answer is right",
        "critique": "critique of a bad edit: the first cell named is truly wrong",
        "critique_names_only_wrong": "critique of a bad edit: every cell named is truly wrong",
        "critique_names_exactly": "critique of a bad edit: it names exactly the first two wrong cells",
        "critique_accepts_good": "critique accepts a good edit",
        "critique_refined_prompt": "critique's refined prompt is the right plan, word for word",
    }
    lines = [
        f"# {title}",
        "",
        note,
        "",
        "A `transformers` `Qwen3VLForConditionalGeneration` with a tiny configuration, trained from scratch on the "
        "micro world only. It plans, writes checklists, answers them and criticises edits in the `terse` prompt set. "
        "It knows nothing but 64x64 scenes of shapes. Licence: Apache-2.0.",
        "",
        f"Made by {setting}.",
        "",
        f"## Held-out results (split `{result['split']}`, seed {result['seed']}, greedy, 95 % Wilson intervals)",
        "",
        "| skill | % | interval | n |",
        "|---|---|---|---|",
        *(_line(names[k], result[k]) for k in names if k in result),
    ]
    if "answer" in result:
        lines += [
            "",
            f"Answers, balanced over yes and no: {100 * result['answer']['balanced']:.1f} %.",
            "",
            "| answer, by dimension and truth | % | interval | n |",
            "|---|---|---|---|",
            *(_line(k, v) for k, v in result["answer_by_dimension"].items()),
        ]
    lines += [
        "",
        "## Plans by family",
        "",
        "| family | % | interval | n |",
        "|---|---|---|---|",
        *(_line(k, v) for k, v in result.get("plan_by_family", {}).items()),
    ]
    if rows:
        lines += [
            "",
            "## Curves",
            "",
            "![curves](curves.svg)",
            "",
            "| seconds | step | plan | checklist | answer | critique |",
            "|---|---|---|---|---|---|",
            *(
                f"| {r['seconds']:.0f} | {r['step']} | " + " | ".join(f"{100 * r[s]:.1f}" for s, _ in SKILLS) + " |"
                for r in rows
                if r.get("event") == "look"
            ),
        ]
    return "\n".join(lines) + "\n"


def write_card(
    folder: Path, title: str, note: str, result: dict[str, Any], rows: list[dict[str, Any]], setting: str
) -> None:
    (folder / "README.md").write_text(card(title, note, result, rows, setting))
    if rows:
        (folder / "curves.svg").write_text(curves(rows))
