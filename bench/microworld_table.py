"""The whole micro-world table: every strategy on every split, measured by the exact checker.

    python bench/microworld_table.py --n 1000 --seed 0              writes docs/results/microworld-table.{json,md}
    python bench/microworld_table.py --n 1000 --splits test         one split; rows that the file holds are kept
    python bench/microworld_table.py --rounds --n 500 --splits test --out docs/results/microworld-rounds.json

Each row is what `premeditate bench run microworld` measures with the command beside it. Rows are written as they come:
a run that was cut off goes on where it stopped. Seconds are wall clock, one process with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RUNS: dict[str, dict[str, Any]] = {
    "direct": {"strategy": "direct"},
    "plan": {"strategy": "plan"},
    "reflect": {"strategy": "reflect"},
    "think-while-edit": {"strategy": "think-while-edit", "max_rounds": 4},
    "4 chains": {"strategy": "think-while-edit", "max_rounds": 4, "chains": 4},
}
ROUNDS: dict[str, dict[str, Any]] = {
    "direct": {"strategy": "direct"},
    "plan": {"strategy": "plan"},
    **{f"{name}, {n}": {"strategy": name, "max_rounds": n}
       for name in ("reflect", "think-while-edit", "expert") for n in (1, 2, 4, 6, 8) if name != "reflect" or n <= 2},
    "think-while-edit from the instruction, 4": {"strategy": "think-while-edit", "first": "instruction"},
    "best-of-n, 4 chains": {"strategy": "best-of-n", "chains": 4},
    "best-of-n, 8 chains": {"strategy": "best-of-n", "chains": 8},
    "best-of-n+reflect, 4 chains": {"strategy": "best-of-n+reflect", "chains": 4},
}  # fmt: skip
"""With --rounds: every strategy, and by how many rounds it may take."""
OUT = Path(__file__).parent.parent / "docs" / "results"


def command(name: str, split: str, n: int, seed: int, editor: str, reasoner: str) -> str:
    options = "".join(f" --{key.replace('_', '-')} {value}" for key, value in (RUNS | ROUNDS)[name].items())
    for flag, spec in (("editor", editor), ("reasoner", reasoner)):
        options += "" if spec == "micro" else f" --{flag} {spec}"
    return f"premeditate bench run microworld --n {n} --seed {seed}{options} --split {split}"


def percent(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "-"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"


def table(rows: dict[str, Any]) -> str:
    """Markdown: success first, then kinds, dimensions, cost and how often the loop's belief was wrong."""
    lines = []
    for split in sorted({row["split"] for row in rows.values()}, key=("test", "ood").index):
        mine = [row for row in rows.values() if row["split"] == split]
        order = list(RUNS | ROUNDS)
        mine.sort(key=lambda row: order.index(row["name"]))
        n, models = mine[0]["report"]["n"], mine[0]["models"].replace("`", "")
        lines += [
            f"## {'In-domain' if split == 'test' else 'Out-of-domain'} (`--split {split}`, n = {n}, {models})",
            "",
            "| strategy | success, % (95 %) | first edit right | any round right | verified | of these wrong "
            "| right, not verified | edits / task | critiques / task | reasoner calls / task | s / task |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in mine:
            r = row["report"]
            lines.append(
                f"| {row['name']} | **{percent(r['success'])}** | {percent(r['first_edit_exact'])} "
                f"| {percent(r['any_round_exact'])} | {percent(r['verified'])} | {percent(r['wrongly_verified'])} "
                f"| {percent(r['wrongly_unverified'])} | {r['edits_per_task']:.2f} "
                f"| {r['calls_per_task'].get('critique', 0):.2f} | {r['reasoner_calls_per_task']:.2f} "
                f"| {r['seconds_per_task']:.3f} |"
            )
        for title, key in (("By kind", "by_kind"), ("By dimension", "by_dimension"), ("By split", "by_split")):
            groups = list(mine[0]["report"][key])
            if len(groups) < 2:
                continue
            heads = [f"{g} (n={mine[0]['report'][key][g]['n']})" for g in groups]
            lines += ["", f"{title}, success in %:", "", f"| strategy | {' | '.join(heads)} |"]
            lines.append("|---" * (1 + len(groups)) + "|")
            for row in mine:
                cells = " | ".join(percent(row["report"][key][g]) for g in groups)
                lines.append(f"| {row['name']} | {cells} |")
        lines += ["", "```", *(row["command"] for row in mine), "```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", nargs="+", default=["test", "ood"])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS | ROUNDS), help="default: the ladder")
    parser.add_argument("--rounds", action="store_true", help="every strategy by its number of rounds instead")
    parser.add_argument("--editor", default="micro", help="SPEC of the editor, say micro-base")
    parser.add_argument("--reasoner", default="micro", help="SPEC of the reasoner")
    parser.add_argument("--out", type=Path, default=OUT / "microworld-table.json")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of the table")
    options = parser.parse_args()

    import torch

    from premeditate.benchmarks.microworld import run

    torch.set_num_threads(1)
    rows: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    runs = options.runs or list(ROUNDS if options.rounds else RUNS)
    for split in options.splits:
        for name in runs:
            text = command(name, split, options.n, options.seed, options.editor, options.reasoner)
            if text in rows:
                continue
            how: dict[str, Any] = (RUNS | ROUNDS)[name]
            report = run(options.n, split, seed=options.seed, editor=options.editor, reasoner=options.reasoner, **how)
            if not report.scored:
                raise SystemExit(f"{text}: no task was scored, {report.to_json()['errors']}")
            models = f"editor {options.editor}, reasoner {options.reasoner}"
            rows[text] = {"name": name, "split": split, "models": models, "command": text, "report": report.to_json()}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(table(rows))
            print(f"{split:5} {name:17} {report.rate()}  {report.seconds / options.n:.3f} s/task", flush=True)
    print(json.dumps(rows) if options.json else table(rows))


if __name__ == "__main__":
    main()
