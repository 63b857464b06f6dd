"""Every judge over a folder of real pictures: what is read, what is scored, how long it takes.

    python bench/judge_folder.py FOLDER --serve transformers       a random tiny Qwen2.5-VL behind `transformers serve`
    python bench/judge_folder.py FOLDER --serve scripted           a server that gives well-formed answers
    python bench/judge_folder.py FOLDER --reasoner http://host:8000/v1

FOLDER holds `triples.jsonl` (one {"id", "source", "edited", "instruction"} per line), or a list of tasks without edits
that `premeditate run` reads, such as RISEBench's `data_total.json`. Where a task has no edit, its reference picture
stands in for one, else the mirrored source: this measures plumbing, formats and coverage, no quality.

Checklists are written, answered, and scored by a panel beside viescore, editscore, digits and preservation; a second
checklist, the same three questions for every task, shows what is answered where none could be written. Then
`premeditate score --json` judges the first edits of the folder by that list, and one with a list of its own. `--serve
transformers` needs a torchvision (tests/support/torchvision_shim.py says how).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import httpx
from PIL import ImageOps

from premeditate import images, presets
from premeditate.datasets import tasks
from premeditate.engine.pooled import pooled
from premeditate.reasoners.base import Reasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.rewards.panel import Entry, Panel
from premeditate.rewards.preservation import Preservation
from premeditate.rewards.specs import load_reward
from premeditate.rewards.verified import VerifiedReward
from premeditate.trace import Checklist, ChecklistItem, Task, Verdict

GIVEN = (
    ChecklistItem(question="Does the edited picture differ from the original?", dimension="follow"),
    ChecklistItem(question="Is the background of the original still there?", dimension="keep"),
    ChecklistItem(question="Is the edited picture free of smears and seams?", dimension="quality"),
)
FIELDS = {"verified", "status", "reason", "scores", "weighted", "answers", "checklist", "canary", "equal", "notes",
          "verifier", "seconds", "tokens", "exit_code"}  # fmt: skip


# -- the folder ----------------------------------------------------------------------------------------------------


def load(folder: Path) -> tuple[list[Sample], list[str]]:
    """The samples, and what could not be read. `meta["edit"]`: "edited", "reference" or "mirrored source"."""
    listed = folder / "triples.jsonl"
    return _triples(listed) if listed.is_file() else _tasks(folder)


def _triples(file: Path) -> tuple[list[Sample], list[str]]:
    found, bad = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            pictures = [images.load(file.parent / row[key]) for key in ("source", "edited")]
            task = Task(id=row["id"], images=(), instruction=row["instruction"], meta={"edit": "edited"})
            found.append(Sample(task, *pictures))
        except (ValueError, KeyError, TypeError, OSError) as error:
            bad.append(f"line {number}: {error}")
    return found, bad


def _tasks(folder: Path) -> tuple[list[Sample], list[str]]:
    file = next((f for f in (folder / "data_total.json", folder / "tasks.jsonl") if f.is_file()), folder)
    found, bad = [], []
    for row in tasks.rows(file):
        if isinstance(row, tasks.BadRow):
            bad.append(row.problem)
            continue
        source, kind, reference = row.images[0], "mirrored source", row.meta.get("reference_img")
        edit = ImageOps.mirror(source)
        if isinstance(reference, str):
            try:
                edit, kind = images.load(file.parent / reference), "reference"
            except (ValueError, OSError) as error:
                bad.append(f"{row.id}: the reference: {error}")
        task = Task(id=row.id, images=(), instruction=row.instruction, meta={"edit": kind})
        found.append(Sample(task, source, edit))
    return found, bad


# -- servers -------------------------------------------------------------------------------------------------------


@contextmanager
def served(kind: str, folder: Path) -> Iterator[str]:
    """The address of a server on this machine: "transformers" or "scripted"."""
    if kind == "scripted":
        from support.chat_server import ChatServer

        server = ChatServer("logprobs")
        server.reply = scripted
        server.tops = [{"Yes": 0.7, "No": 0.2, "4": 0.06, "3": 0.04}]
        with server:
            yield server.url
        return
    from support import torchvision_shim
    from support.tiny_vlm import build_vlm

    if not torchvision_shim.available():
        raise SystemExit(torchvision_shim.MISSING)
    model, home = build_vlm("qwen2_5_vl", folder / "model"), folder / "home"
    (home / "hub").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "support.torchvision_shim", "serve", str(model), "--host", "127.0.0.1", "--port",
               str(port), "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=torchvision_shim.environment(HF_HOME=str(home)), stdout=log,
                                   stderr=subprocess.STDOUT, cwd=home)  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1#{quote(str(model))}"
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while True:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start: {log.read_text()[-1000:]}") from None
            time.sleep(0.3)


def scripted(body: dict[str, Any]) -> str:
    """A well-formed answer to each kind of question; of the checklist, all that may be asked for."""
    text = " ".join(p["text"] for m in body["messages"] for p in m["content"] if isinstance(p, dict) and "text" in p)
    if '"score": [' in text:
        return json.dumps({"reasoning": "as asked", "score": [8, 6]})
    if '"items"' in text:
        asked = {"follow": ("Is the asked thing in the picture?", "Does the asked thing have the right colour?",
                            "Is the asked thing in the right place?"),
                 "keep": ("Is the background the same as before?", "Is the main subject the same as before?",
                          "Is the light the same as before?"),
                 "quality": ("Are all edges clean?", "Does the texture look natural?")}  # fmt: skip
        return json.dumps({"items": [{"question": q, "dimension": d} for d, questions in asked.items()
                                     for q in questions]})  # fmt: skip
    return "yes"


class Given:
    """The same questions for every task."""

    name, dimensions = "given checklist", ("follow", "keep", "quality")

    def __init__(self, judge: ChecklistVerifier) -> None:
        self.judge = judge

    async def score(self, samples: Sequence[Sample]) -> Sequence[Verdict]:
        checklist = Checklist(items=GIVEN, author="the same for every task")
        return await self.judge.verify([replace(s, checklist=checklist) for s in samples])


# -- judging -------------------------------------------------------------------------------------------------------


def panel(spec: str, timeout: float, k: int, only: Sequence[str] = ()) -> tuple[Panel, ChecklistBuilder]:
    def reasoner(_: str = "") -> Reasoner:
        made: Reasoner = pooled(presets.load_reasoner(spec))
        return made

    builder = ChecklistBuilder(reasoner(), examples=1)
    entries = [
        ("written checklist", VerifiedReward(ChecklistVerifier(reasoner()), builder=builder)),
        ("given checklist", Given(ChecklistVerifier(reasoner()))),
        ("given checklist with canary", Given(ChecklistVerifier(reasoner(), canary=True))),
        ("viescore", load_reward(f"viescore:{spec}", reasoner)),
        ("editscore", load_reward(f"editscore[k={k}]:{spec}", reasoner)),
        ("digits", load_reward(f"digits[least_mass=0]:{spec}", reasoner)),
        ("preservation", Preservation()),
    ]
    names = [name for name, _ in entries]
    if unknown := [name for name in only if name not in names]:
        raise SystemExit(f"there is no reward {unknown[0]!r}; there are {', '.join(names)}")
    chosen = [Entry(reward, timeout=timeout, name=name) for name, reward in entries if not only or name in only]
    return Panel(chosen), builder


def judged(spec: str, samples: Sequence[Sample], options: argparse.Namespace) -> dict[str, Any]:
    """By reward: statuses, coverage, seconds and the commonest reasons."""
    made, builder = panel(spec, options.timeout, options.k, options.rewards.split("+") if options.rewards else ())
    rows: dict[str, list[Any]] = {name: [] for name in made.rewards}
    spent: Counter[str] = Counter()
    with made:
        for at in range(0, len(samples), options.batch):
            part = samples[at : at + options.batch]
            scores = made.submit(part).result()
            for row in scores.verdicts:
                for name, verdict in zip(made.rewards, row, strict=True):
                    rows[name].append(verdict)
            spent.update(scores.seconds)
            print(f"{at + len(part)} of {len(samples)}: {dict(scores.coverage)}", flush=True)
    return {
        "written": {"calls": builder.asked, "left out": dict(builder.dropped)},
        "rewards": {
            name: {
                "statuses": dict(Counter(v.status for v in found)),
                "coverage": sum(v.status == "scored" for v in found) / len(found),
                "some score": sum(bool(v.scores) for v in found),
                "seconds": round(spent[name], 1), "tokens": sum(v.tokens for v in found),
                "reasons": dict(Counter(_short(v.reason) for v in found if v.status != "scored").most_common(3)),
            }
            for name, found in rows.items()
        },
    }  # fmt: skip


def _short(reason: str) -> str:
    return " ".join(reason.split())[:90]


def commanded(spec: str, samples: Sequence[Sample], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`premeditate score --json` over edits, by a given list; the last by one that is written. Exit codes 0, 1 and 5
    are answers; the output of each must be one object with all fields."""
    from typer.testing import CliRunner

    from premeditate.cli.app import app

    listed = folder / "list.json"
    listed.write_text(json.dumps({"items": [item.model_dump() for item in GIVEN]}))
    codes: Counter[str] = Counter()
    start = time.perf_counter()
    for number, sample in enumerate(samples):
        pair = []
        for name, image in (("source", sample.source), ("edit", sample.edit)):
            pair.append(str(folder / f"{name}.png"))
            images.save(image, Path(pair[-1]))
        own = number == len(samples) - 1
        words = ["score", *pair, sample.task.instruction, "--reasoner", spec, "--json", "--no-explain"]
        done = CliRunner().invoke(app, [*words, *([] if own else ["--checklist", str(listed)])])
        try:
            told = json.loads(done.stdout)
            status = told.get("status", "error")
            sound = told.keys() >= (FIELDS if status != "error" else {"error"}) and done.exit_code in (0, 1, 5)
        except ValueError:
            status, sound = "no JSON", False
        codes[f"{'written' if own else 'given'}: {status}, exit {done.exit_code}{'' if sound else ', UNSOUND'}"] += 1
        if not sound:
            print(done.stdout[-500:], done.stderr[-500:], repr(done.exception))
    return {"outcomes": dict(codes), "seconds": round(time.perf_counter() - start, 1)}


# -- the report ----------------------------------------------------------------------------------------------------


def report(name: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## {name}, {found['judge']}", "",
        f"{found['samples']} edits ({_counts(found['edits'])}), {found['unread']} rows unreadable. "
        f"Checklists: {found['judged']['written']['calls']} calls, questions left out: "
        f"{_counts(found['judged']['written']['left out']) or 'none'}. `score --json`: "
        f"{_counts(found['command']['outcomes'])} in {found['command']['seconds']} s.", "",
        "| reward | scored | statuses | with some score | s | tokens | why not |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for reward, row in found["judged"]["rewards"].items():
        lines.append(
            f"| {reward} | {row['coverage']:.0%} | {_counts(row['statuses'])} | {row['some score']} "
            f"| {row['seconds']} | {row['tokens']} | {_counts(row['reasons']).replace('|', '/')} |"
        )
    return [*lines, ""]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument("--reasoner", help="a preset, folder or address")
    judge.add_argument("--serve", choices=("transformers", "scripted"))
    parser.add_argument("--name", default="", help="of the folder, in the report")
    parser.add_argument("--limit", type=int, default=None, help="samples at most")
    parser.add_argument("--commands", type=int, default=6, help="edits for `premeditate score`")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--k", type=int, default=2, help="passes of editscore")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a call of a reward")
    parser.add_argument("--rewards", default="", help="only these, joined by +, such as digits+preservation")
    parser.add_argument("--side", type=int, default=None, help="pictures are reduced to this many pixels a side")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the tables are written beside it")
    options = parser.parse_args()
    samples, bad = load(options.folder)
    samples = [_reduced(s, options.side) for s in samples[: options.limit]]
    if not samples:
        raise SystemExit(f"{options.folder} holds no edit that can be read: {bad[:3]}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.serve is None:
            found = run(options.reasoner, samples, options, folder)
        else:
            with served(options.serve, folder) as spec:
                found = run(spec, samples, options, folder)
    found |= {"judge": options.serve or options.reasoner, "unread": len(bad), "bad": bad[:20]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    text = "\n".join(report(options.name or options.folder.name, found))
    options.out.with_suffix(".md").write_text(text)
    print(text)


def run(spec: str, samples: Sequence[Sample], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        "samples": len(samples), "edits": dict(Counter(s.task.meta["edit"] for s in samples)),
        "judged": judged(spec, samples, options),
        "command": commanded(spec, samples[: options.commands], options, folder),
    }  # fmt: skip


def _reduced(sample: Sample, side: int | None) -> Sample:
    if side is None:
        return sample
    pair = [image.copy() for image in (sample.source, sample.edit)]
    for image in pair:
        image.thumbnail((side, side))
    return replace(sample, source=pair[0], edit=pair[1])


if __name__ == "__main__":
    main()
