"""The task format: a folder with `tasks.jsonl` and the pictures that it names.

One line per task: {"id": str, "images": [relative path, ...], "instruction": str, "meta": {...}}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from premeditate import images

FILE = "tasks.jsonl"


@dataclass(frozen=True)
class TaskRow:
    """A task with its pictures in hand (RGB), as a dataset holds it."""

    id: str
    images: tuple[Image.Image, ...]
    instruction: str
    meta: dict[str, Any] = field(default_factory=dict)


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
    """Reads a folder or its tasks.jsonl. Raises ValueError that names the line for whatever cannot be read."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"no tasks at {file}: give a folder with {FILE}, or the file itself")
    root = file.parent.resolve()
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                paths = [(root / name).resolve() for name in data["images"]]
                if not paths or not all(p.is_relative_to(root) for p in paths):
                    raise ValueError("images must lie inside the dataset's folder")
                pictures = tuple(images.load(p) for p in paths)
                yield TaskRow(str(data["id"]), pictures, str(data["instruction"]), dict(data.get("meta") or {}))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: {error!r}"[:400]) from error
