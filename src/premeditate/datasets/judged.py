"""Judged edits: what a reasoning reward model learns from (Edit-RRM's cold start, arXiv 2604.27505, section 3).

    FOLDER/shards/00000.jsonl           one `JudgedEdit` a line; a shard is there whole or not at all
    FOLDER/images/ab/abcd....png        pictures, named by the SHA-256 of their bytes

`premeditate data rrm` makes such a folder; how it came about stands in its datasheet. Pictures are named relative to
the folder, so that it can be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from pydantic import Field, ValidationError, model_validator

from premeditate import images
from premeditate.errors import PremeditateError, one_line
from premeditate.files import write_atomic
from premeditate.trace import ChecklistItem, Record, Status

SHARDS, PICTURES = "shards", "images"


class JudgedError(PremeditateError):
    """A folder of judged edits that cannot be read."""


class Candidate(Record):
    """One judgement of an edit by one judge. `score` in [0, 10]; `verdicts`: one per principle. `accuracy` in [0, 1]:
    the share of verdicts that are the gold ones. Without "scored" there are none of these, and `problem` says why."""

    judge: str
    temperature: float = 0.0
    seed: int = 0
    status: Status = "scored"
    thought: str = ""
    verdicts: tuple[bool, ...] = ()
    score: float | None = Field(default=None, ge=0, le=10)
    accuracy: float | None = Field(default=None, ge=0, le=1)
    problem: str = ""


class JudgedEdit(Record):
    """An edit with its principles, the gold verdict on each (`reasons`: in a few words, "" where none was given) and
    its candidates. `chosen`: the index of the candidate that was kept, which is scored. Pictures are paths in the
    folder."""

    id: str
    task: str
    instruction: str
    source: str
    edit: str
    editor: str = ""
    principles: tuple[ChecklistItem, ...] = Field(min_length=1)
    gold: tuple[bool, ...]
    reasons: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    chosen: int = Field(ge=0)

    @model_validator(mode="after")
    def _fits(self) -> JudgedEdit:
        count = len(self.principles)
        for what, values in (("gold verdicts", self.gold), ("reasons", self.reasons)):
            if len(values) != count and (values or what != "reasons"):
                raise ValueError(f"it has {len(values)} {what} for {count} principles")
        for i, one in enumerate(self.candidates):
            if one.status == "scored" and (len(one.verdicts) != count or one.score is None):
                raise ValueError(f"candidate {i} is scored without a score or a verdict for each of {count} principles")
        if self.chosen >= len(self.candidates) or self.kept.status != "scored":
            raise ValueError(f"it chose candidate {self.chosen}, which it does not have or which is not scored")
        return self

    @property
    def kept(self) -> Candidate:
        return self.candidates[self.chosen]


def read(folder: Path) -> Iterator[JudgedEdit]:
    """The judged edits of `folder`, shard after shard. Raises `JudgedError` where there are none, at the end where all
    shards are empty, and for a line that is none."""
    shards = sorted((folder / SHARDS).glob("*.jsonl"))
    if not shards:
        raise JudgedError(f"{folder} holds no judged edits", "make them: premeditate data rrm")
    empty = True
    for shard in shards:
        for edit in read_shard(shard):
            empty = False
            yield edit
    if empty:
        raise JudgedError(f"{folder} holds no judged edits: its shards are empty",
                          "read what became of them in its datasheet.md, and make others")  # fmt: skip


def read_shard(path: Path) -> Iterator[JudgedEdit]:
    """The judged edits of one shard. Raises `JudgedError` for a line that is none."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            yield JudgedEdit.model_validate_json(line)
        except ValidationError as error:
            where = f"{SHARDS}/{path.name}:{number}"
            raise JudgedError(f"{where} is no judged edit ({one_line(error)})", "make that shard again") from None


def put(folder: Path, picture: Image.Image) -> str:
    """Keeps a picture in `folder`, once, and returns its name there. Raises `WriteError`."""
    data = images.encode(picture)
    digest = hashlib.sha256(data).hexdigest()
    name = f"{PICTURES}/{digest[:2]}/{digest}.png"
    if not (folder / name).exists():
        write_atomic(folder / name, data, sync=False)
    return name


def picture(folder: Path, name: str) -> Image.Image:
    """The picture of that name, RGB. Raises what `premeditate.images.load` does."""
    return images.load(folder / name)
