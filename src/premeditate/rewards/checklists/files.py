"""Checklists as JSON files that a person may edit: one by one, and as a folder of them, found by content.

    {
      "format": "premeditate checklist 1",
      "instruction": "paint the odd one out green",
      "author": "qwen3-vl-8b",
      "items": [{"question": "Is there ...?", "dimension": "follow"}, ...],
      "written": "..."          the items as the author wrote them, as a hash: where it differs, a person changed them
    }

Only `items` is needed, and a bare list of items will do. What a person wrote is used as it is: it is checked for its
form, not sifted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from premeditate.errors import PremeditateError
from premeditate.files import write_atomic
from premeditate.prompts.general import fault
from premeditate.trace import Checklist, ChecklistItem

FORMAT = "premeditate checklist 1"
MOST = 1_000_000
"""Bytes of a file."""
_FIELDS = ("format", "instruction", "author", "items", "note", "written", "key", "seconds", "tokens")


class ChecklistFileError(PremeditateError):
    """A checklist's file that cannot be read as one."""


@dataclass(frozen=True)
class Filed:
    """A checklist with what its file says of its task; "" where it says nothing."""

    checklist: Checklist
    instruction: str = ""
    key: str = ""


def write_checklist(path: str | os.PathLike[str], checklist: Checklist, instruction: str, key: str = "") -> Path:
    """Writes a checklist that is scored. Raises `WriteError`."""
    return write_atomic(Path(path), dump_checklist(checklist, instruction, key).encode())


def dump_checklist(checklist: Checklist, instruction: str, key: str = "") -> str:
    """The text of its file."""
    about = {
        "format": FORMAT,
        "instruction": instruction,
        "author": checklist.author,
        "items": [item.model_dump() for item in checklist.items],
        "note": checklist.note,
        "written": _digest(checklist.items),
        "key": key,
        "seconds": round(checklist.seconds, 3),
        "tokens": checklist.tokens,
    }
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def read_checklist(path: str | os.PathLike[str]) -> Filed:
    """Raises `ChecklistFileError`, with the mend, for a file that is damaged or holds no questions."""
    where = Path(path).expanduser()
    mend = 'write {"items": [{"question": "Is ...?", "dimension": "follow"}]}, or delete the file'
    try:
        if where.stat().st_size > MOST:
            raise ChecklistFileError(f"the checklist {where} has more than {MOST:,} bytes", mend)
        found = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ChecklistFileError(f"there is no checklist {where}", "check the path") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise ChecklistFileError(f"the checklist {where} cannot be read: {why}", "check the path") from None
    except (ValueError, RecursionError) as error:
        raise ChecklistFileError(f"the checklist {where} is not JSON: {error}", mend) from None
    return _filed(found, where, mend)


def _filed(found: Any, where: Path, mend: str) -> Filed:
    data = {"items": found} if isinstance(found, list) else found
    if not isinstance(data, dict) or not isinstance(data.get("items"), list):
        raise ChecklistFileError(f"the checklist {where} holds no list of items", mend)
    if not data["items"]:
        raise ChecklistFileError(f"the checklist {where} has 0 items", mend)
    if unknown := [key for key in data if key not in _FIELDS]:
        raise ChecklistFileError(f"the checklist {where} has the unknown key {str(unknown[0])[:60]!r}",
                                 f"it knows {', '.join(_FIELDS)}")  # fmt: skip
    if data.get("format", FORMAT) != FORMAT:
        raise ChecklistFileError(f"the checklist {where} has the format {str(data['format'])[:60]!r}",
                                 "update Premeditate, or delete the file to have it written again")  # fmt: skip
    items = []
    for number, entry in enumerate(data["items"], 1):
        try:
            item = ChecklistItem.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise ChecklistFileError(f"item {number} of the checklist {where}: {place}: {first['msg']}", mend) from None
        items.append(item)
    if (why := fault(items)) is not None:
        raise ChecklistFileError(f"the checklist {where} is none: {why}", mend)
    told = {key: data[key] for key in ("author", "note", "seconds", "tokens") if key in data}
    written = data.get("written")
    author = "a person" if written is None and "author" not in data else data.get("author", "")
    edited = written is not None and written != _digest(tuple(items))
    try:
        checklist = Checklist.model_validate({**told, "items": items, "author": author, "edited": edited})
    except ValidationError as error:
        first = error.errors()[0]
        raise ChecklistFileError(f"the checklist {where}: {first['loc'][0]}: {first['msg']}", mend) from None
    return Filed(checklist, str(data.get("instruction", "")), str(data.get("key", "")))


def _digest(items: tuple[ChecklistItem, ...]) -> str:
    told = json.dumps([[item.dimension, item.question] for item in items], ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:16]


class ChecklistFolder:
    """Checklists by the key of their content. A file is written once and never overwritten: it may have been edited."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()

    def place(self, key: str, instruction: str) -> Path:
        """The file's name says what it is about, for people."""
        words = re.sub(r"[^a-z0-9]+", "-", instruction.lower()).strip("-")[:48].strip("-")
        return self.path / f"{words or 'checklist'}-{key[:16]}.json"

    def get(self, key: str, instruction: str) -> Checklist | None:
        """None where there is no file. Raises `ChecklistFileError` for a damaged one, or one of another task."""
        where = self.place(key, instruction)
        if not where.exists():
            return None
        filed = read_checklist(where)
        if filed.key and filed.key != key:
            raise ChecklistFileError(f"the checklist {where} belongs to another task", "delete it, or its key")
        return filed.checklist

    def put(self, key: str, instruction: str, checklist: Checklist) -> Checklist:
        """The checklist that is in the folder afterwards: somebody else may have been first. Raises `WriteError`."""
        if (there := self.get(key, instruction)) is not None:
            return there
        write_checklist(self.place(key, instruction), checklist, instruction, key)
        return checklist
