"""Makes the README's pictures from what the first command really prints and writes.

    python docs/make_images.py [CHROMIUM]

Writes docs/images/{first-command.svg,report-desktop.png,report-phone.png}. Needs a Chromium (default: the one that
PREMEDITATE_CHROMIUM names, or `chromium`). Fails where the command does not end verified.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SIZES = {"desktop": (1280, 900, "light", 1), "phone": (390, 844, "dark", 2)}
"""Name -> width and height in CSS pixels, colour scheme, device pixels per CSS pixel."""


def first_command() -> list[str]:
    """The words of the README's first command, after `premeditate`."""
    (found,) = re.findall(r"&& premeditate (edit .+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    return shlex.split(found)


def terminal(command: str, output: str) -> str:
    """An SVG of a terminal that shows `command` and `output` (with its colours). No web font is asked for."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    console.print(Text.from_ansi(output))
    svg = console.export_svg(title="")
    return re.sub(r"@font-face\s*{[^}]*}", "", svg).replace(
        "Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"
    )


def main(chromium: str) -> None:
    words = first_command()
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        # Colours without a terminal, and so without the line that says what is being waited for.
        environment = {
            **os.environ,
            "PYTHONPATH": source,
            "FORCE_COLOR": "1",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
        }
        command = [sys.executable, "-m", "premeditate.cli", *words]
        done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the first command ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        shown = shlex.join(words[:2]) + f' "{words[2]}"'
        (IMAGES / "first-command.svg").write_text(terminal(f"premeditate {shown}", done.stdout), encoding="utf-8")
        (report,) = Path(folder).glob("*.html")
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=QUIET)
            for name, (width, height, scheme, scale) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme,
                                        device_scale_factor=scale)  # fmt: skip
                page.goto(report.as_uri())
                page.screenshot(path=IMAGES / f"report-{name}.png")
            browser.close()
    for path in sorted(IMAGES.glob("*")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PREMEDITATE_CHROMIUM") or "/usr/bin/chromium")
