"""What the user did, said in one line with the mend, and the exit code that goes with it.

Exit codes of the `premeditate` command:

    0    done; an edit was verified
    1    done, but no round was verified (the best one is still written)
    2    wrong usage: unknown option, missing argument
    3    the input image cannot be used
    4    the instruction cannot be used
    5    a model, adapter or verifier cannot be loaded, or it failed on every chain
    6    the output cannot be written
    7    a stored run cannot be read or is being written by another process
    70   a defect in Premeditate itself
    130  interrupted by Ctrl-C; the store holds everything up to that moment
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from enum import IntEnum

INSTRUCTION_LIMIT = 4_000  # characters

# <|im_start|>, <|image_pad|>, and the same with the full-width bar that some tokenizers use.
_CONTROL_TOKEN = re.compile(r"<[|\uff5c][^<>|\uff5c]{1,64}[|\uff5c]>")


class ExitCode(IntEnum):
    """The process exit codes listed in this module's docstring."""

    VERIFIED = 0
    NOT_VERIFIED = 1
    USAGE = 2
    IMAGE = 3
    INSTRUCTION = 4
    MODEL = 5
    WRITE = 6
    RUN = 7
    INTERNAL = 70
    INTERRUPTED = 130


def printable(text: str) -> str:
    """`text` on one line, control characters and lone surrogates escaped: file names must not drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(word: str, known: Sequence[str], count: int = 3) -> str:
    """The known names most like `word`, for an error message."""
    import difflib

    close = difflib.get_close_matches(word.lower(), known, n=count, cutoff=0.4)
    return " or ".join(close) if close else ", ".join(sorted(known))


class PremeditateError(ValueError):
    """Something the user can put right. `str()` is one line: the problem, then the mend.

    `problem` says what is wrong, `mend` what to do about it, `exit_code` what the command line answers.
    """

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, problem: str, mend: str = "") -> None:
        self.problem = printable(problem)
        self.mend = printable(mend)
        super().__init__(f"{self.problem}; {self.mend}" if mend else self.problem)


def one_line(
    error: BaseException, plain: type[BaseException] | tuple[type[BaseException], ...] = PremeditateError,
    most: int | None = 300,
) -> str:  # fmt: skip
    """What an error says, on one line of at most `most` characters (None: of any length); before it the error's type,
    unless the error is one of `plain`, whose words are meant for people."""
    text = " ".join(str(error).split())[:most]
    return text if text and isinstance(error, plain) else f"{type(error).__name__}: {text}"


class ImageError(PremeditateError):
    """An input image that is missing, broken, too large or of a kind that is not read."""

    exit_code = ExitCode.IMAGE


class InstructionError(PremeditateError):
    """An instruction that is empty, too long, or holds control characters or model control tokens."""

    exit_code = ExitCode.INSTRUCTION


class ModelError(PremeditateError):
    """A model, adapter, verifier or SPEC that cannot be loaded or used."""

    exit_code = ExitCode.MODEL


class WriteError(PremeditateError):
    """An output that cannot be written."""

    exit_code = ExitCode.WRITE


class StoreError(PremeditateError):
    """A stored run that cannot be read, or that another process is writing."""

    exit_code = ExitCode.RUN


def check_instruction(text: str) -> str:
    """The instruction with runs of white space made single spaces, or `InstructionError`.

    Refused: empty, longer than `INSTRUCTION_LIMIT` characters, control characters, text that is not valid Unicode, and
    model control tokens such as `<|im_start|>`, which would let the instruction speak as the system or the model.
    Other markup (`<b>`) is data and passes unchanged.
    """
    if len(text) > INSTRUCTION_LIMIT:
        raise InstructionError(
            f"the instruction has {len(text):,} characters, the limit is {INSTRUCTION_LIMIT:,}",
            "say what to change in a few sentences",
        )
    clean = " ".join(text.split())
    if not clean:
        raise InstructionError(
            "the instruction is empty", 'say what to change, for example "paint the odd one out green"'
        )
    for char in clean:
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise InstructionError(
                f"the instruction holds the control character U+{ord(char):04X}",
                "remove it (it often comes with text copied from a terminal or a PDF)",
            )
    if token := _CONTROL_TOKEN.search(clean):
        raise InstructionError(
            f"the instruction holds the model control token {token.group()}", "remove it, or write it without the bars"
        )
    return clean
