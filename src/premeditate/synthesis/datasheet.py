"""What all shards of a folder come to: datasheet.json, and the same for people in datasheet.md.

It is worked out from the shards that are there and from the counts beside them, and from nothing else: a folder that
was merged from several has one like any other. Intervals are Wilson's at 95 %; they take principles for independent,
which those of one edit are not quite.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from premeditate.datasets.judged import SHARDS, read_shard
from premeditate.files import write_atomic
from premeditate.prompts.general import DIMENSIONS
from premeditate.stats import Rate
from premeditate.synthesis.errors import SynthesisError
from premeditate.synthesis.settings import Settings
from premeditate.synthesis.shard import EDITS_LOST, TASKS_LOST
from premeditate.synthesis.tally import BINS, Tally

COUNTS, NAME = "counts", "datasheet"
REASONS = 5
"""Reasons listed for each loss; the others are counted together."""


class Sheet:
    """Follows the shards of `folder`, each of which is read once. `total`: shards there will be."""

    def __init__(self, folder: Path, settings: Settings, total: int) -> None:
        self.folder, self.settings, self.total = folder, settings, total
        self.tally = Tally()
        self.counts: list[dict[str, Any]] = []
        self.seen: set[int] = set()
        self.uncounted: list[int] = []

    def write(self) -> dict[str, Any]:
        """Reads what is new, writes both files and returns what the first one holds."""
        self.update()
        found = self.to_json()
        write_atomic(self.folder / f"{NAME}.json", (json.dumps(found, ensure_ascii=False, indent=1) + "\n").encode())
        write_atomic(self.folder / f"{NAME}.md", markdown(found).encode())
        return found

    def update(self) -> None:
        """Raises `JudgedError` for a damaged shard, `SynthesisError` for damaged counts."""
        for path in sorted((self.folder / SHARDS).glob("*.jsonl")):
            if not path.stem.isdigit() or (number := int(path.stem)) in self.seen:
                continue
            self.tally += Tally.of(read_shard(path))
            self.seen.add(number)
            counted = self.folder / COUNTS / f"{path.stem}.json"
            try:
                self.counts.append(json.loads(counted.read_bytes()))
            except FileNotFoundError:
                self.uncounted.append(number)
            except (OSError, ValueError) as error:
                raise SynthesisError(f"{counted} cannot be read ({type(error).__name__})",
                                     "delete it and its shard, and add --resume") from None  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        tally = self.tally
        slots = [f"{judge} @ {t:g}" for judge in self.settings.judges for t in self.settings.temperatures]
        statuses, problems = self._sums("candidates"), self._sums("problems")
        made = self._sums("edits")
        missing = sorted(set(range(self.total)) - self.seen)
        return {
            "shards": {"whole": len(self.seen), "total": self.total, "missing": missing,
                       "uncounted": sorted(self.uncounted)},
            "tasks": sum(c["tasks"] for c in self.counts),
            "edits": {"asked": sum(c["asked"] for c in self.counts), "kept": sum(tally.edits.values()),
                      "same_picture_twice": tally.twice},
            "lost": self._lost(),
            "editors": {
                name: {**{what: made.get(name, Counter())[what] for what in ("made", "failed", "unedited")},
                       "kept": tally.edits[name], "all_met": Rate(tally.whole[name], tally.edits[name]).to_json()}
                for name in self.settings.editors
            },
            "principles": {
                "count": sum(k * n for k, n in tally.principles.items()),
                "per_edit": {str(k): tally.principles[k] for k in sorted(tally.principles)},
                "met": {"all" if d is None else d: tally.met(d).to_json() for d in (*DIMENSIONS, None)},
            },
            "candidates": {
                name: {"statuses": dict(statuses.get(name, {})), "problems": _top(problems.get(name, Counter())),
                       **self._agreement(name, None),
                       "dimensions": {d: self._agreement(name, d) for d in DIMENSIONS},
                       "chosen": tally.chosen[name]}
                for name in slots
            },
            "between_candidates": [
                {"one": one, "other": other, "same": rate.to_json()} for (one, other), rate in tally.between().items()
            ],
            "kept": {"accuracy": tally.kept_accuracy.to_json(), "all_right": tally.flawless.to_json(),
                     "ties": tally.tied},
            "scores": {"kept": [tally.scores[i] for i in range(BINS)],
                       "all": [tally.all_scores[i] for i in range(BINS)]},
            "seconds": {k: round(sum(c["seconds"].get(k, 0.0) for c in self.counts), 1)
                        for k in _keys(c["seconds"] for c in self.counts)},
            "settings": self.settings.model_dump(mode="json"),
            "models": _distinct(c["models"] for c in self.counts),
            "versions": _distinct(c["versions"] for c in self.counts),
            "licences": "not known here: those of the pictures, the instructions and every model named above hold",
        }  # fmt: skip

    def _agreement(self, name: str, dimension: str | None) -> dict[str, Any]:
        found = self.tally.agreement(name, dimension)
        return {"accuracy": found.accuracy.to_json(), "met_found": found.met.to_json(),
                "unmet_found": found.unmet.to_json(), "balanced_accuracy": found.balanced,
                "kappa": found.kappa}  # fmt: skip

    def _lost(self) -> dict[str, Any]:
        lost: Counter[str] = Counter()
        for counts in self.counts:
            lost.update(counts["lost"])
        reasons = self._sums("reasons")
        return {what: {"of": "tasks" if what in TASKS_LOST else "edits", "count": lost[what],
                       "reasons": _top(reasons.get(what, Counter()))}
                for what in (*TASKS_LOST, *EDITS_LOST)}  # fmt: skip

    def _sums(self, what: str) -> dict[str, Counter[str]]:
        found: dict[str, Counter[str]] = {}
        for counts in self.counts:
            for name, part in counts[what].items():
                found.setdefault(name, Counter()).update(part)
        return found


def _top(reasons: Counter[str]) -> dict[str, int]:
    """The commonest; what is left over is "(others)"."""
    found = dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))[:REASONS])
    rest = sum(reasons.values()) - sum(found.values())
    return {**found, **({"(others)": rest} if rest else {})}


def _keys(parts: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for part in parts for key in part))


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each different one, in the order in which they came: several machines may have made the shards."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


# -- for people -------------------------------------------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> str:
    shards, edits, settings = found["shards"], found["edits"], found["settings"]
    parts = [
        "# Judged edits",
        "Edits with their principles, a gold verdict on each, and the judgements of several models, of which the one "
        "that agrees best with gold is kept (after Edit-RRM, arXiv 2604.27505, section 3). Gold is what the verifier "
        f"`{settings['verifier']}` said. Intervals: Wilson, 95 %, over single principles.",
        _table(["", "count"], [
            ["shards", f"{shards['whole']} of {shards['total']}"], ["tasks", found["tasks"]],
            ["principles on kept edits", found["principles"]["count"]],
            ["edits asked for", edits["asked"]], ["edits kept", edits["kept"]],
            ["of these the same picture as another of their task", edits["same_picture_twice"]],
        ]),
        *([f"Shards without counts, which the losses below do not hold: {shards['uncounted']}."]
          if shards["uncounted"] else []),
        "## What is not in it",
        _table(["reason", "of", "count", "in words"], [
            [what, lost["of"], lost["count"], _words(lost["reasons"])] for what, lost in found["lost"].items()
        ]),
        "## Editors",
        _table(["editor", "made", "failed", "unedited", "kept", "every principle met"], [
            [name, e["made"], e["failed"], e["unedited"], e["kept"], _rate(e["all_met"])]
            for name, e in found["editors"].items()
        ]),
        "## Gold",
        _table(["dimension", "principles", "met"], [
            [d, rate["n"], _rate(rate)] for d, rate in found["principles"]["met"].items()
        ]),
        "## Candidates",
        _table(["judge @ temperature", "scored", "not scored", "accuracy", "met found", "unmet found",
                "balanced", "kappa", "kept"], [
            [name, c["statuses"].get("scored", 0), _words({k: n for k, n in c["statuses"].items() if k != "scored"}),
             _rate(c["accuracy"]), _rate(c["met_found"]), _rate(c["unmet_found"]), _number(c["balanced_accuracy"]),
             _number(c["kappa"]), c["chosen"]] for name, c in found["candidates"].items()
        ]),
        f"Verdicts of the kept candidates that are right: {_rate(found['kept']['accuracy'])}; kept candidates with "
        f"every verdict right: {_rate(found['kept']['all_right'])}; edits whose best candidate was one of several: "
        f"{found['kept']['ties']}.",
        "## Agreement between candidates",
        _table(["one", "other", "same verdict"], [
            [pair["one"], pair["other"], _rate(pair["same"])] for pair in found["between_candidates"]
        ]),
        "## Scores",
        _table(["score", "kept", "all candidates"], [
            [f"{i}-{i + 1}", kept, every]
            for i, (kept, every) in enumerate(zip(found["scores"]["kept"], found["scores"]["all"], strict=True))
        ]),
        "## Licences",
        "Not known here. Those of the pictures, the instructions and every model named below hold; say here which "
        "these are before you pass the data on.",
        "## How it was made",
        _code({"settings": settings, "models": found["models"], "versions": found["versions"],
               "seconds": found["seconds"]}),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return "None."
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    # Words of models and of tasks: a bar would open a column.
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _words(counted: dict[str, int]) -> str:
    return "; ".join(f"{n} {text}" for text, n in counted.items())


def _rate(rate: dict[str, Any]) -> str:
    return str(Rate(rate["k"], rate["n"]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _code(value: Any) -> str:
    # Indented, so that no text can close a fence.
    return "\n".join(f"    {line}" for line in json.dumps(value, ensure_ascii=False, indent=1).splitlines())
