"""The `premeditate` command: one file per subcommand. Everything heavy is imported inside the subcommands."""

from __future__ import annotations


def main() -> None:
    """The entry point. Ends the process with one of the codes listed in `premeditate.errors`."""
    try:
        from premeditate.cli.app import app

        app(prog_name="premeditate")
    except KeyboardInterrupt:  # before or after a subcommand; within one, `guarded` answers
        raise SystemExit(130) from None
