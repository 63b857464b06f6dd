"""How many calls a run takes, before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from premeditate.datasets.tasks import BadRow, TaskRow
from premeditate.prompts.checklists import WANTED
from premeditate.synthesis.settings import JudgeSpec, Settings
from premeditate.synthesis.source import brought

LOOKED = 1000
"""Tasks whose principles are counted; more are taken to be like these."""


def calls(settings: Settings, rows: Iterable[TaskRow | BadRow], tasks: int) -> dict[str, Any]:
    """{"tasks", "edits", "calls": {what: number, None: not known}, "notes"} for `tasks` tasks of which `rows` are the
    first. Numbers are rounded up, and no call is taken to fail."""
    looked = bad = bare = principles = 0
    for row in rows:
        looked += 1
        if isinstance(row, BadRow):
            bad += 1
        elif (checklist := brought(row)) is None:
            bare += 1
        else:
            principles += len(checklist.items)
    notes = [] if looked >= tasks else [f"counted in the first {looked:,} tasks, and taken to go on like that"]
    if bad:
        notes.append(f"{bad} of {looked:,} tasks cannot be read")
    if bare and settings.reasoner is None:
        notes.append(f"{bare} of {looked:,} tasks bring no principles and are left out: no --reasoner writes them")
    if bare and settings.reasoner is not None:
        mean = sum(low + high for low, high in WANTED.values()) / 2
        principles += round(bare * mean)
        notes.append(f"{mean:g} principles are taken for each task that brings none; some are asked for twice")
    scale = tasks / looked if looked else 0.0
    usable = looked - bad - (bare if settings.reasoner is None else 0)
    each = settings.edits_per_editor
    edits = round(scale * usable) * each * len(settings.editors)
    asked = round(scale * principles) * each * len(settings.editors)
    found: dict[str, int | None] = {}
    if settings.reasoner is not None:
        found["principles"] = round(scale * bare)
    for name in settings.editors:
        found[f"editor {name}"] = edits // len(settings.editors)
    found[f"verifier {settings.verifier}"] = _verifier(settings.verifier, edits, asked)
    for name in settings.judges:
        drawn = edits * len(settings.temperatures)
        apart = JudgeSpec.parse(name).form == "apart"
        found[f"judge {name}"] = asked + drawn if apart else drawn
    return {"tasks": tasks, "edits": edits, "calls": found, "notes": notes}


def _verifier(use: str, edits: int, principles: int) -> int | None:
    if use == "exact":
        return 0
    if use.startswith("reasoner:"):
        return 2 * principles  # an answer and its evidence
    if not use.startswith("rrm"):
        return None
    passes = re.match(r"rrm\[[^\]]*\bk=(\d+)", use)
    return edits * (int(passes[1]) if passes else 1)
