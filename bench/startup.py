"""How long `import premeditate` and `premeditate --help` take, beside `python -c pass`.

    python bench/startup.py [--runs N] [--json] [--import-bound S] [--help-bound S]

Each command is run N times in turn with the others, so that a busy machine slows them alike. Reported is the median of
the processor seconds (user + system) of the whole process, and its ratio to the bare interpreter. Bound is what is
added to the bare interpreter for the import, and the whole process for the help. Exit code 1: a bound was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

BARE = [sys.executable, "-c", "pass"]
IMPORT = [sys.executable, "-c", "import premeditate"]
HELP = [sys.executable, "-c", "from premeditate.cli import main; main()", "--help"]


def processor_seconds(command: list[str]) -> float:
    """User and system seconds of one run of `command`; raises RuntimeError with its output where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {output.decode(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="runs of each command (default 11)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--import-bound", type=float, default=0.1, help="seconds `import premeditate` may add")
    parser.add_argument("--help-bound", type=float, default=0.3, help="seconds `premeditate --help` may take")
    options = parser.parse_args()
    commands = {"bare": BARE, "import": IMPORT, "help": HELP}
    for command in commands.values():  # byte code and file cache, once
        processor_seconds(command)
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.runs):
        for name, command in commands.items():
            samples[name].append(processor_seconds(command))
    median = {name: statistics.median(values) for name, values in samples.items()}
    added = median["import"] - median["bare"]
    result = {
        "runs": options.runs,
        "python": sys.version.split()[0],
        "processor_seconds": {name: round(value, 4) for name, value in median.items()},
        "ratio_to_bare": {name: round(value / median["bare"], 2) for name, value in median.items()},
        "import_added_seconds": round(added, 4),
        "bounds": {"import": options.import_bound, "help": options.help_bound},
        "within_bounds": added < options.import_bound and median["help"] < options.help_bound,
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, label in (
            ("bare", "python -c pass"),
            ("import", "import premeditate"),
            ("help", "premeditate --help"),
        ):
            print(f"{label:20} {median[name]:7.3f} s  x{median[name] / median['bare']:.2f}")
        print(
            f"the import adds {added:.3f} s (bound {options.import_bound:g}), help takes {median['help']:.3f} s "
            f"(bound {options.help_bound:g}): {'within bounds' if result['within_bounds'] else 'TOO SLOW'}"
        )
    return 0 if result["within_bounds"] else 1


if __name__ == "__main__":
    sys.exit(main())
