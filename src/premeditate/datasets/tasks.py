"""The task format: a folder with `tasks.jsonl` and the pictures that it names.

One line per task: {"id": str, "images": [path, ...], "instruction": str, "meta": {...}}. `write` and `read` are for
datasets, which are whole and complete. `rows` is for a user's own list, which may be anything:

- JSON lines as above; "image": path does for one picture, "id" and "meta" may be left out, other columns go to meta
- a folder with `tasks.jsonl`
- a folder of pictures, each with a text of the same name beside it: `cat.png` and its instruction in `cat.txt`
- RISEBench's layout: a folder with `data_total.json`, a list of {"index", "category", "instruction", "image", ...}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from premeditate import images
from premeditate.errors import PremeditateError, check_instruction, printable

FILE = "tasks.jsonl"
RISE = "data_total.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LONGEST = 4 << 20
"""Bytes of one line that are read; a longer one is no task."""
_KEYS = ("id", "image", "images", "instruction", "meta")


@dataclass(frozen=True)
class TaskRow:
    """A task with its pictures in hand (RGB), as a dataset holds it."""

    id: str
    images: tuple[Image.Image, ...]
    instruction: str
    meta: dict[str, Any] = field(default_factory=dict)


def prompt_of(row: TaskRow) -> str:
    """What editors are told: meta["prompt"] where the task has one, else its instruction; white space made single.
    Raises ValueError, with the mend, for one that is refused or no text."""
    prompt = row.meta.get("prompt", row.instruction)
    if not isinstance(prompt, str):
        raise PremeditateError("its meta.prompt is no text", "give a text, or leave it out")
    return check_instruction(prompt)


@dataclass(frozen=True)
class BadRow:
    """A row that is no task, and why, with its place. `id` is unlike every other row's; `instruction` may be ""."""

    id: str
    instruction: str
    problem: str


@dataclass(frozen=True)
class _Raw:
    """A row before it is looked at: `data` is what it holds, or what is wrong with it."""

    place: str
    data: Any


def write(folder: Path, rows: Iterable[TaskRow]) -> int:
    """Writes rows into `folder` (made if missing) and returns how many. `tasks.jsonl` appears only when all are there.

    Raises ValueError where the folder already holds tasks, or an id appears twice.
    """
    target = folder / FILE
    if target.exists():
        raise ValueError(f"{target} is there already: choose another folder, or remove it")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    part = target.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        for row in rows:
            if row.id in seen:
                raise ValueError(f"two tasks are called {row.id!r}")
            seen.add(row.id)
            names = []
            for k, image in enumerate(row.images):
                names.append(f"images/{len(seen):06d}-{k}.png")
                images.save(image, folder / names[-1])
            line = {"id": row.id, "images": names, "instruction": row.instruction, "meta": row.meta}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(part, target)
    return len(seen)


def read(path: Path) -> Iterator[TaskRow]:
    """Reads a dataset: a folder, or its tasks.jsonl. Its pictures lie inside the folder. Raises ValueError that names
    the line for whatever cannot be read."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no tasks at {file}: give a folder with {FILE}, or the file itself")
    for row in _parsed(_lines(file), file.parent, inside=True):
        if isinstance(row, BadRow):
            raise ValueError(f"{file}, {row.problem}"[:600])
        yield row


def rows(path: Path) -> Iterator[TaskRow | BadRow]:
    """The rows of a user's list in any of the forms above, one at a time, so that one row's pictures are in memory.

    Relative paths start at the list's folder; absolute ones may name any picture. A row that is no task (bad JSON, a
    field or picture missing, an instruction that is refused, an id that was there before) is a `BadRow`, and the rest
    goes on. Raises ValueError with the mend, at once, where `path` is no list at all.
    """
    root, raw = _open(path)
    return _parsed(raw(), root, inside=False)


def count(path: Path) -> int:
    """How many rows `rows(path)` gives. Opens no picture. Raises ValueError like `rows`."""
    _, raw = _open(path)
    return sum(1 for _ in raw())


def _open(path: Path) -> tuple[Path, Callable[[], Iterator[_Raw]]]:
    """The folder that relative paths start from, and the rows."""
    path = path.expanduser()
    try:
        if path.is_file():
            if path.suffix.lower() == ".json":
                entries = _rise(path)
                return path.parent, lambda: iter(entries)
            return path.parent, lambda: _lines(path)
        if not path.is_dir():
            raise PremeditateError(
                f"there are no tasks at {path}", f"give a folder with {FILE}, or a file of JSON lines"
            )
        if (path / FILE).is_file():
            return path, lambda: _lines(path / FILE)
        if (path / RISE).is_file():
            entries = _rise(path / RISE)
            return path, lambda: iter(entries)
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise PremeditateError(f"cannot read {path}: {error.strerror}", "check its permissions") from error
    if not any(p.with_suffix(".txt").is_file() for p in pictures):
        raise PremeditateError(
            f"{path} holds neither {FILE} nor pictures with a text beside them",
            f"write {FILE}, or an instruction beside each picture: cat.png, cat.txt",
        )
    return path, lambda: map(_beside, pictures)


def _lines(file: Path) -> Iterator[_Raw]:
    """One raw row per line that is not blank. A line that is too long is read in pieces and thrown away."""
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(LONGEST):
            number += 1
            place = f"line {number}"
            if len(line) == LONGEST and not line.endswith(b"\n"):
                while (rest := lines.readline(LONGEST)) and not rest.endswith(b"\n"):
                    pass
                yield _Raw(place, ValueError(f"the line is longer than {LONGEST >> 20} MiB; put the pictures in files"))
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # what Windows' editors put before UTF-8
            if not line.strip():
                continue
            try:
                yield _Raw(place, json.loads(line.decode("utf-8")))
            except UnicodeDecodeError:
                yield _Raw(place, ValueError("the line is not UTF-8; save the file as UTF-8"))
            except (ValueError, RecursionError) as error:
                yield _Raw(place, ValueError(f"the line is not JSON ({error}); write one object per line"))


def _rise(file: Path) -> list[_Raw]:
    """RISEBench's list; its `index` is the id."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise ValueError("it holds no list")
    except (ValueError, RecursionError) as error:
        raise PremeditateError(
            f"{file} is no list of tasks ({error})", "give a JSON list of objects, or JSON lines"
        ) from error
    found = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, dict) and "index" in entry:
            entry = {"id": entry["index"], **{k: v for k, v in entry.items() if k != "index"}}
        found.append(_Raw(f"entry {number}", entry))
    return found


def _beside(picture: Path) -> _Raw:
    text = picture.with_suffix(".txt")
    try:
        instruction = text.read_bytes()[:LONGEST].decode("utf-8-sig")
    except FileNotFoundError:
        return _Raw(picture.name, ValueError(f"there is no {text.name} beside it; write the instruction there"))
    except UnicodeDecodeError:
        return _Raw(picture.name, ValueError(f"{text.name} is not UTF-8; save it as UTF-8"))
    except OSError as error:
        return _Raw(picture.name, ValueError(f"cannot read {text.name}: {error.strerror}; check its permissions"))
    return _Raw(picture.name, {"id": picture.name, "image": picture.name, "instruction": instruction})


def _parsed(raw: Iterator[_Raw], root: Path, *, inside: bool) -> Iterator[TaskRow | BadRow]:
    seen: set[str] = set()
    for one in raw:
        data = one.data
        wanted = data.get("id") if isinstance(data, dict) else None
        named = wanted is not None and _is_name(wanted)
        name = printable(str(wanted)) if named else one.place.replace(" ", "-")
        fresh = _fresh(name, one.place, seen)
        try:
            if isinstance(data, ValueError):
                raise data
            if not isinstance(data, dict):
                raise ValueError(f"it is {_kind(data)}; write an object with image and instruction")
            if wanted is not None and not named:
                raise ValueError(f"its id is {_kind(wanted)}; give a short text, or leave it out")
            if named and fresh != name:
                raise ValueError(f"an earlier row is called {name!r} too; give each its own id")
            yield _row(fresh, data, root, inside)
        except ValueError as error:
            instruction = data.get("instruction", "") if isinstance(data, dict) else ""
            shown = printable(instruction[:300]) if isinstance(instruction, str) else ""
            yield BadRow(fresh, shown, printable(f"{one.place}: {error}")[:600])


def _is_name(value: object) -> bool:
    """A text that is not blank, or a number, as databases have them."""
    if isinstance(value, str):
        return bool(value.strip()) and len(value) <= 200
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _fresh(name: str, place: str, seen: set[str]) -> str:
    """`name`, or one that tells it from those that were `seen`."""
    found = name if name not in seen else f"{name} ({place})"
    while found in seen:
        found += "'"
    seen.add(found)
    return found


def _row(name: str, data: dict[str, Any], root: Path, inside: bool) -> TaskRow:
    """Raises ValueError, "problem; mend"."""
    # A record holds plain JSON only: no NaN, no infinity, no half of a surrogate pair.
    try:
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it holds what no record can ({error}); use plain JSON values") from None
    if not isinstance(instruction := data.get("instruction"), str):
        raise ValueError(f"its instruction is {_kind(instruction)}; say in words what to change")
    if not isinstance(meta := data.get("meta") or {}, dict):
        raise ValueError(f"its meta is {_kind(meta)}; give an object")
    clean = check_instruction(instruction)
    names = data.get("images") if data.get("images") is not None else data.get("image")
    if data.get("images") is not None and data.get("image") is not None:
        raise ValueError("it has both image and images; give one of them")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError("it names no picture; give image (a path) or images (a list of paths)")
    pictures = tuple(_picture(n, root, inside) for n in names)
    return TaskRow(name, pictures, clean, {k: v for k, v in data.items() if k not in _KEYS} | meta)


def _picture(name: str, root: Path, inside: bool) -> Image.Image:
    if "://" in name or name.startswith("data:"):
        return images.load(name)  # which refuses an address, with the mend
    path = root / name
    try:
        if inside and not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"the picture {name} lies outside the dataset's folder; copy it into it")
        missing = not path.exists()
    except OSError as error:  # a name too long for the file system, a loop of links
        raise ValueError(f"there can be no picture {name[:200]} ({error.strerror}); check the path") from None
    if missing:
        raise ValueError(f"there is no picture {path}; relative paths start at the list's folder")
    return images.load(path)


def _kind(value: object) -> str:
    """A JSON value in words."""
    if value is None:
        return "missing"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    text = names.get(type(value), "something else")
    return f"{text} of {len(value)} characters" if isinstance(value, str) else text
