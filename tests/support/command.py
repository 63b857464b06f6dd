"""The `premeditate` command, in this process and in one of its own, with models made of rules."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from premeditate import presets
from premeditate.cli.app import app

Install = Callable[..., None]
"""Installs an editor and a reasoner, or the usual ones."""


class Outcome:
    """What a command did: `code`, `out`, `err`."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def premeditate(*words: object) -> Outcome:
    """The command in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="premeditate", terminal_width=100)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Outcome(done.exit_code, done.stdout, done.stderr)


def premeditate_process(*words: object, cwd: Path, **options: Any) -> Outcome:
    """The command as a user starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "premeditate.cli", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **options,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def signalled(script: str, *words: object, cwd: Path, number: signal.Signals) -> Outcome:
    """What a script came to that was sent a signal as soon as it said "editing"."""
    running = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    assert running.stderr.readline() == "editing\n"
    running.send_signal(number)
    began = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert time.monotonic() - began < 20
    return Outcome(running.returncode, out, err)


def install(monkeypatch: pytest.MonkeyPatch, editor: object, reasoner: object) -> None:
    """Every SPEC names these two."""
    monkeypatch.setattr(presets, "load_editor", lambda spec, **_: editor)
    monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: reasoner)
