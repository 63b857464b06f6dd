"""What can go wrong while data is made."""

from __future__ import annotations

from premeditate.errors import ExitCode, PremeditateError


class SynthesisError(PremeditateError):
    """A folder that does not fit the command: other settings, shards of an earlier run."""

    exit_code = ExitCode.RUN


class DeadPart(PremeditateError):
    """An editor, judge or verifier with which nothing could be made of a whole shard: going on would only count
    failures."""

    exit_code = ExitCode.MODEL
