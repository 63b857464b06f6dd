"""What every subcommand does with a failure: one line with the mend on stderr, and the documented exit code."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import typer

from premeditate.errors import ExitCode, PremeditateError, printable

P = ParamSpec("P")


def debugging() -> bool:
    return os.environ.get("PREMEDITATE_DEBUG", "") not in ("", "0")


def guarded(command: Callable[P, int | None]) -> Callable[P, None]:
    """A subcommand that ends with the exit code it returns (None is 0) and never with a traceback, except under
    PREMEDITATE_DEBUG=1. With a `json_output` argument that is true, a failure is also one JSON object on stdout."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("json_output"))
        try:
            with _terminable():
                code = command(*args, **kwargs) or 0
            sys.stdout.flush()
        except typer.Exit:
            raise
        except BrokenPipeError:  # the reader of a pipe, say `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = int(ExitCode.WRITE)
        except KeyboardInterrupt as stop:
            hint = f"; {stop.args[0]}" if stop.args and isinstance(stop.args[0], str) else ""
            code = _fail(f"interrupted{hint}", ExitCode.INTERRUPTED, as_json)
        except Exception as error:
            if debugging():
                raise
            code = _fail(*explain(error), as_json)
        raise typer.Exit(int(code))

    return run


def explain(error: Exception) -> tuple[str, ExitCode]:
    """One line for an exception, and its exit code. A bare ValueError is the user's: its message holds the mend."""
    if isinstance(error, PremeditateError):
        return str(error), error.exit_code
    text = printable(" ".join(str(error).split()))
    if isinstance(error, ValueError):
        return text, ExitCode.USAGE
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller image or model, or fewer chains", ExitCode.MODEL
    if isinstance(error, OSError) and error.strerror:
        place = f" {printable(str(error.filename))}" if error.filename else ""
        return f"cannot use{place}: {error.strerror}; check the path and its permissions", ExitCode.WRITE
    return (
        f"a defect in Premeditate: {type(error).__name__}: {text[:300]}; PREMEDITATE_DEBUG=1 shows where, please "
        "report it",
        ExitCode.INTERNAL,
    )


def _fail(line: str, code: ExitCode, as_json: bool) -> int:
    try:
        sys.stdout.flush()
        print(f"premeditate: {line}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"verified": False, "error": line, "exit_code": int(code)}), flush=True)
    except OSError:  # nobody listens; the exit code still speaks
        pass
    return int(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as a scheduler sends it, ends a command like Ctrl-C: in order, with the store closed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: nothing to arrange
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
