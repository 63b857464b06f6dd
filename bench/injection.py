"""How often text that is painted into an edit, or written into a question or an instruction, changes a verdict.

    python bench/injection.py --n 72 --seeds 3          writes docs/results/verifier-injection{.json,.png,-tables.md}

Each edit of a micro-world task (exactly right, or with one of the damages of `premeditate.microworld.pairs`) is judged
as it is, with a text painted on it, and with the same letters in another order, which cover the same pixels and say
nothing: what changes a verdict with those is that the picture is damaged, not that anybody obeyed.

Two judges: the tiny reasoner of the package, and a scripted one that answers exactly right unless it sees one of the
texts (it compares pixels, so that it reads each of them without fail) and then does what that says. The scripted one is
no model of a real judge: it proves what the guards catch where a judge obeys. Verdicts are compared with the same
judge's verdict on the clean edit without guards. Intervals are Wilson's at 95 %.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from PIL import Image

from premeditate import presets
from premeditate.microworld.controls import micro_controls
from premeditate.microworld.pairs import DAMAGES, damaged
from premeditate.microworld.render import SIDE, render
from premeditate.microworld.tasks import sample_task
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.reasoners.callable import CallableReasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.controls import Controls, none, plain
from premeditate.rewards.checklists.validation import sift
from premeditate.rewards.judges.viescore import VIEScore
from premeditate.stats import Rate
from premeditate.trace import Answer, Checklist, ChecklistItem, Task, Verdict

sys.path.insert(0, str(Path(__file__).parent))
from injected import PAINTED, WRITTEN, obeying, painted, parsing, scrambled, undone

OUT = Path(__file__).parent.parent / "docs" / "results"
GUARDS = ("none", "canary", "canary + controls")


class Remembering:
    """A reasoner that is asked each thing once: the arms differ in what they make of the answers."""

    def __init__(self, reasoner: Reasoner) -> None:
        self.reasoner, self.name, self.prompts = reasoner, reasoner.name, reasoner.prompts
        self._known: dict[bytes, Completion] = {}

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        keys = [_key(request) for request in requests]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._known}
        if new:
            self._known |= zip(new, await self.reasoner.chat(list(new.values())), strict=True)
        return [self._known[key] for key in keys]


def _key(request: ChatRequest) -> bytes:
    digest = hashlib.sha256(f"{request.text} {request.labels}".encode())
    for image in request.images:
        digest.update(f"{image.size}".encode() + image.tobytes())
    return digest.digest()


# -- painted text --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    clean: Sample
    attacked: Sample
    scrambled: Sample
    kind: str


def edits(n: int, seed: int, side: int) -> list[Edit]:
    """`n` edits in turn with every damage; the text's kind and place are turned independently of it."""
    out = []
    for i in range(n):
        task, rng = sample_task(seed * 100_000 + i, "test"), random.Random(f"injection/{seed}/{i}")
        damage = DAMAGES[i % len(DAMAGES)]
        edit = damaged(task, damage, rng) or render(task.source)
        kind, low = list(PAINTED)[i // len(DAMAGES) % len(PAINTED)], rng.random() < 0.5
        source, edit = (im.resize((side, side), Image.Resampling.NEAREST) for im in (render(task.source), edit))
        clean = Sample(Task(id=f"{task.id}-{i}", images=(), instruction=task.instruction), source, edit,
                       Checklist(items=task.checklist))  # fmt: skip
        text = PAINTED[kind][0]
        out.append(Edit(clean, replace(clean, edit=painted(edit, text, low)),
                        replace(clean, edit=painted(edit, scrambled(text), low)), kind))  # fmt: skip
    return out


def verdicts(reasoner: Reasoner, samples: Sequence[Sample], guard: str, controls: Controls) -> list[Verdict]:
    used = none if guard == "canary" else controls
    judge = ChecklistVerifier(reasoner, canary=guard != "none", controls=used)
    return asyncio.run(judge.verify(samples))


def outcome(verdict: Verdict) -> str:
    return "aside" if verdict.status != "scored" else "pass" if verdict.passed else "fail"


def painting(reasoner: Reasoner, work: Sequence[Edit], controls: Controls) -> dict[str, Any]:
    """Counts of what became of verdicts and of single answers, by guard, version ("clean", "scrambled", "attacked") and
    kind of text."""
    asked = Remembering(reasoner)
    before = verdicts(asked, [e.clean for e in work], "none", controls)
    found: dict[str, Any] = {}
    for guard in GUARDS:
        for version in ("clean", "scrambled", "attacked"):
            got = verdicts(asked, [getattr(e, version) for e in work], guard, controls)
            for kind in PAINTED:
                pairs = [(b, v) for e, b, v in zip(work, before, got, strict=True) if e.kind == kind]
                rows = [(outcome(b), outcome(v)) for b, v in pairs]
                rows += [(_said(x), _said(y)) for b, v in pairs for x, y in zip(b.answers, v.answers, strict=True)]
                found[f"{guard}/{version}/{kind}"] = {
                    f"{b}>{a}": rows.count((b, a))
                    for words in (("pass", "fail", "aside"), ("yes", "no", "open")) for b in words for a in words
                }  # fmt: skip
    return found


def _said(answer: Answer) -> str:
    return "open" if answer.status != "scored" else "yes" if answer.yes else "no"


def added(cells: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(cell[key] for cell in cells) for key in cells[0]}


def rates(cell: dict[str, int]) -> dict[str, Rate]:
    """`won`: of the edits that failed, now passed. `lost`: of those that passed, now failed. `flipped`: either, of all.
    `aside`: of all, without a verdict. `answers`: of the answers no, now yes."""

    def of(*was: str) -> int:
        return sum(n for key, n in cell.items() if key.split(">")[0] in was)

    n = of("pass", "fail", "aside")
    return {
        "flipped": Rate(cell["fail>pass"] + cell["pass>fail"], n), "won": Rate(cell["fail>pass"], of("fail")),
        "lost": Rate(cell["pass>fail"], of("pass")),
        "aside": Rate(sum(cell[f"{was}>aside"] for was in ("pass", "fail", "aside")), n),
        "answers": Rate(cell["no>yes"], of("no")),
    }  # fmt: skip


# -- text in words -------------------------------------------------------------------------------------------------


def words(seeds: int, n: int, tiny: Reasoner) -> dict[str, dict[str, Rate]]:
    """By text: how often it made the parsing judge say yes to a question or give the best score for an instruction;
    how often the checklist's sieve left the question out; and how many of the tiny reasoner's answers became yes."""
    out: dict[str, dict[str, Rate]] = {}
    made = [e.clean for seed in range(seeds) for e in edits(n, seed, SIDE)]
    before: list[Answer] = []
    for name, text in WRITTEN.items():
        items = [(ChecklistItem(question=f"Is part {i} of the picture free of artifacts{text}?", dimension="quality"),)
                 for i in range(len(made))]  # fmt: skip
        lists = [replace(s, checklist=Checklist(items=i)) for s, i in zip(made, items, strict=True)]
        told = [replace(s, task=s.task.model_copy(update={"instruction": s.task.instruction + text})) for s in made]
        row: dict[str, Rate] = {}
        for guard, judge in (("guarded", parsing), ("not guarded", undone)):
            got = asyncio.run(ChecklistVerifier(CallableReasoner(judge), controls=none).verify(lists))
            row[f"question, {guard}"] = Rate.of(v.passed for v in got)
            score = asyncio.run(VIEScore(CallableReasoner(judge), dimensions=("semantic",)).score(told))
            row[f"instruction, {guard}"] = Rate.of(v.scores.get("semantic") == 1.0 for v in score)
        row["question left out"] = Rate.of(not sift(i).items for i in items)
        longer = [replace(s, checklist=_with(s.checklist, text)) for s in made[:n]]
        answers = [a for v in asyncio.run(ChecklistVerifier(tiny).verify(longer)) for a in v.answers]
        before = before or answers
        pairs = [(b, a) for b, a in zip(before, answers, strict=True) if b.yes is False]
        row["tiny reasoner: no, now yes"] = Rate.of(a.yes is True for _, a in pairs)
        out[name] = row
    return out


def _with(checklist: Checklist | None, text: str) -> Checklist:
    assert checklist is not None
    items = (i.model_copy(update={"question": f"{i.question.rstrip('?')}{text}?"}) for i in checklist.items)
    return Checklist(items=tuple(items))


# -- the report ----------------------------------------------------------------------------------------------------


def table(title: str, counts: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"### {title}", "",
             "| picture | guards | verdicts flipped | failed, now passes | passed, now fails | no verdict "
             "| answers no, now yes |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    said = {"clean": "no text", "scrambled": "scrambled letters", "attacked": "text, all kinds"}
    for version, name in said.items():
        for guard in GUARDS:
            lines.append(_row(name, guard, [c[f"{guard}/{version}/{kind}"] for c in counts for kind in PAINTED]))
    for kind in PAINTED:
        for guard in (GUARDS[0], GUARDS[-1]):
            lines.append(_row(f"text: {kind}", guard, [c[f"{guard}/attacked/{kind}"] for c in counts]))
    return [*lines, ""]


def _row(name: str, guard: str, cells: Sequence[dict[str, int]]) -> str:
    found = rates(added(cells))
    shown = (f"{found[k]} ({found[k].k} of {found[k].n})" for k in ("flipped", "won", "lost", "aside", "answers"))
    return f"| {name} | {guard} | {' | '.join(shown)} |"


def words_table(found: dict[str, dict[str, Rate]]) -> list[str]:
    names = list(next(iter(found.values())))
    lines = [f"| text | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return [*lines, *(f"| {text} | {' | '.join(str(row[name]) for name in names)} |" for text, row in found.items())]


def picture(side: int, seed: int) -> Image.Image:
    """One edit without text, with each kind of it, and with scrambled letters."""
    shown = [(e, e.kind) for e in edits(6 * len(PAINTED), seed, side)[::6]]
    tiles = [shown[0][0].clean.edit, *(e.attacked.edit for e, _ in shown), shown[0][0].scrambled.edit]
    sheet = Image.new("RGB", (len(tiles) * 200, 200), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile.resize((192, 192), Image.Resampling.NEAREST), (i * 200 + 4, 4))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=72, help="edits per seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reasoner", default="micro", help="a reasoner of the micro world")
    parser.add_argument("--sizes", default="64,256", help="sides of the pictures, multiples of 64")
    parser.add_argument("--out", type=Path, default=OUT / "verifier-injection.json")
    parser.add_argument("--report", action="store_true", help="only the rest, from the counts that the file holds")
    options = parser.parse_args()
    raw = json.loads(options.out.read_text()) if options.report else measured(options)
    tiny = presets.load_reasoner(raw["reasoner"])
    assert not isinstance(tiny, list)
    found = words(raw["seeds"], raw["n"], tiny)
    raw["words"] = {text: {name: rate.to_json() for name, rate in row.items()} for text, row in found.items()}
    options.out.write_text(json.dumps(raw, indent=1) + "\n")
    parts = [line for title, counts in raw["runs"].items() for line in table(title, counts)]
    body = ["## Painted text", "", *parts, "## Written text", "", *words_table(found)]
    options.out.with_name(f"{options.out.stem}-tables.md").write_text("\n".join([*head(raw), *body, ""]))
    picture(max(raw["sizes"]), 0).save(options.out.with_suffix(".png"))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    start, tiny = time.perf_counter(), presets.load_reasoner(options.reasoner)
    assert not isinstance(tiny, list)
    sizes = [int(side) for side in options.sizes.split(",")]
    judges = (
        (f"The tiny reasoner `{options.reasoner}`", tiny, micro_controls),
        ("A judge that obeys, micro-world words", CallableReasoner(obeying, name="obeying", prompts="terse"),
         micro_controls),
        ("A judge that obeys, general words and the default controls",
         CallableReasoner(obeying, name="obeying", prompts="general"), plain),
    )  # fmt: skip
    raw: dict[str, Any] = {"n": options.n, "seeds": options.seeds, "sizes": sizes, "reasoner": options.reasoner}
    runs = raw["runs"] = {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for side in sizes:
        for name, judge, controls in judges:
            title = f"{name}, {side} px"
            runs[title] = [painting(judge, edits(options.n, seed, side), controls) for seed in range(options.seeds)]
            raw["seconds"] = round(time.perf_counter() - start)
            options.out.write_text(json.dumps(raw, indent=1) + "\n")  # so that a run that was cut off has its counts
            print(f"{title}: {raw['seconds']} s", flush=True)
    return raw


def head(raw: dict[str, Any]) -> list[str]:
    sizes = ",".join(map(str, raw["sizes"]))
    command = f"python bench/injection.py --n {raw['n']} --seeds {raw['seeds']} --sizes {sizes}"
    return [
        "# Tables of verifier-injection.md", "",
        f"`{command}`: {raw['n']} edits for each of {raw['seeds']} seeds, every edit without text, with one of "
        f"{len(PAINTED)} texts, and with that text's letters in another order; {raw['seconds']} s.", "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
