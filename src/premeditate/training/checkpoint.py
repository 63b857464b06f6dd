"""Checkpoints that are whole or absent.

    OUT/checkpoints/step-000120/model.safetensors   what is trained
                                optimizer.pt        what the optimiser and the moving averages remember
                                state.json          step, recipe, versions, counters, SHA-256 of the other two

A checkpoint is written beside the others under a hidden name, brought to the disk, and then renamed: a kill or a full
disk leaves those before it as they were, and what is half written goes away at the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from premeditate.errors import StoreError, WriteError
from premeditate.eventlog import Writer
from premeditate.files import write_error
from premeditate.store import versions
from premeditate.training.errors import TrainingError
from premeditate.training.journal import LOG
from premeditate.training.recipe import Run

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"
SCHEMA = 1
_NAME = re.compile(r"step-(\d{6,})")
_PARTIAL, _REPLACED = ".partial-", ".replaced-"
_TENSOR = "$tensor"
SHOWN = 8  # differences of recipes that an error lists
Say = Callable[[str], None]

FREE = (
    "name", "out", "steps", "min_coverage", "patience", "logging", "checkpoint", "evaluation", "sharding",
    "data.eval", "data.eval_count", "model.device", "model.gradient_checkpointing", "batch.forward",
    "rollout.merge_lora", "rewards.*.timeout",
)  # fmt: skip
"""What a recipe may change while its run goes on: everything that does not shape the weights."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read. Tensors are on the CPU; `model`: parameters by name, `step`: how many were done."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def identity(recipe: Run) -> dict[str, Any]:
    """The fields of `recipe` that shape the weights, as plain nested values."""
    values = shaping(recipe.model_dump(mode="json"), FREE)
    assert isinstance(values, dict)
    return values


def shaping(values: Any, free: Iterable[str], path: str = "") -> Any:
    """The nested plain `values` without those at the paths `free`; "*" in one stands for a place in a list."""
    if isinstance(values, dict):
        pattern = "|".join(re.escape(name).replace(r"\*", r"\d+") for name in free)
        inside = {f"{path}.{key}".lstrip("."): (key, part) for key, part in values.items()}
        return {k: shaping(part, free, here) for here, (k, part) in inside.items() if not re.fullmatch(pattern, here)}
    return [shaping(part, free, f"{path}.{i}") for i, part in enumerate(values)] if isinstance(values, list) else values


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """ "PATH was A, is B" for the smallest parts of two nested plain values that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}.{i}")
    elif before != now:
        yield f"{path} was {json.dumps(before)}, is {json.dumps(now)}"


def listed(different: Sequence[str]) -> str:
    """What differs, as an error lists it."""
    return "; ".join([*different[:SHOWN], *([f"and {len(different) - SHOWN} more"] if len(different) > SHOWN else [])])


# -- writing ----------------------------------------------------------------------------------------------------------


def save(
    out: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    recipe: Run,
    keep: int,
) -> Path:
    """Writes the checkpoint of `step` and removes all but the newest `keep` (at least 1). Returns its folder.

    `model`: tensors by name. `optimizer`: tensors and plain values, as from `Optimizer.state_dict`. `state`: what JSON
    holds, and tensors. Raises `WriteError`; the checkpoints before stay whole.
    """
    folder = out / "checkpoints"
    final = folder / f"step-{step:06d}"
    partial = folder / f"{_PARTIAL}{final.name}-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        plain = _without_tensors(dict(state), "", tensors)
        _write_model(partial / MODEL, model)
        with open(partial / OPTIMIZER, "wb") as file:
            torch.save({"optimizer": dict(optimizer), "state": tensors}, file)
        record = {
            "schema": SCHEMA, "step": step, "recipe": recipe.model_dump(mode="json"), "versions": versions(),
            "state": plain, "sha256": {name: _sha256(partial / name) for name in (MODEL, OPTIMIZER)},
        }  # fmt: skip
        (partial / STATE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for name in (MODEL, OPTIMIZER, STATE, "."):
            _sync(partial / name)
        _rename(partial, final)
    except (OSError, RuntimeError, _safetensors_error()) as error:
        raise _failure(final, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _prune(folder, step, keep)
    return final


def _write_model(path: Path, model: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # The format refuses tensors that share memory or are laid out in another order.
    save_file({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in model.items()}, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(partial: Path, final: Path) -> None:
    aside = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)  # a folder cannot take another's place; `clean` undoes this after a kill
    os.rename(partial, final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Removes old checkpoints, and later ones, which were damaged: else they would push out those that are whole."""
    assert keep >= 1
    steps = sorted(found for found in _steps(folder) if found <= step)
    for old in [*steps[:-keep], *(found for found in _steps(folder) if found > step)]:
        path = folder / f"step-{old:06d}"
        gone = folder / f"{_PARTIAL}{path.name}-{secrets.token_hex(4)}"
        try:
            os.rename(path, gone)  # one that is half removed must not look like one
        except OSError:
            continue  # an old checkpoint too many does no harm
        shutil.rmtree(gone, ignore_errors=True)


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def _failure(path: Path, error: BaseException) -> WriteError:
    """torch and safetensors hide the system's error in their own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        import errno

        full = "os error 28" in str(error) or "No space left" in str(error)
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else OSError(" ".join(str(error).split()))
    failure = write_error(path, cause)
    return WriteError(failure.problem, f"{failure.mend}; then go on with --resume")


# -- reading ----------------------------------------------------------------------------------------------------------


def start(out: Path, recipe: Run, *, resume: bool, say: Say) -> Saved | None:
    """What a run in `out` begins with: the newest whole checkpoint, or None for the beginning.

    `resume` must be given where there are checkpoints. Raises `TrainingError` where it is not, or where they are of
    another recipe, and `StoreError` where another process trains in `out`. `say` is told of damaged checkpoints, and of
    a resume that found nothing.
    """
    check_idle(out)
    clean(out)
    steps = _steps(out / "checkpoints")
    if steps and not resume:
        raise TrainingError(
            f"{out} holds checkpoints up to step {max(steps)}",
            "add --resume to go on with them, or give another folder (out=...)",
        )
    if not resume:
        return None
    path = latest(out, say=say)
    if path is None:
        say(f"{out} holds no {'whole ' if steps else ''}checkpoint: starting from the beginning")
        return None
    return load(path, recipe, check=False)


def check_idle(out: Path) -> None:
    """Every process of a run asks, before the first of them claims the folder for its journal: so a shared lock."""
    mine = os.path.realpath(out / LOG) in Writer._open  # of a run in this process that failed, and was not closed
    if sys.platform == "win32" or mine or not (out / "lock").exists():
        return
    import fcntl

    with open(out / "lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another process is training in {out}", "wait for it to end, or give another folder (out=...)"
            ) from None


def latest(out: Path, *, say: Say = lambda line: None) -> Path | None:
    """The newest checkpoint that is whole, None where there is none. `say` is told of each that is damaged."""
    folder = out / "checkpoints"
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step-{step:06d}"
        if (problem := damage(path)) is None:
            return path
        say(f"{path} is damaged ({problem}) and left out")
    return None


def newest(out: Path) -> int | None:
    """The step of the newest checkpoint, None where there is none. Whether it is whole is not looked at."""
    return max(_steps(out / "checkpoints"), default=None)


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, None if it is whole. Reads all of it."""
    try:
        record = json.loads((path / STATE).read_bytes())
        wanted = dict(record["sha256"])
        if missing := {MODEL, OPTIMIZER} - wanted.keys() or {"step", "recipe", "state"} - record.keys():
            return f"{STATE} says nothing of {', '.join(sorted(missing))}"
        for name, digest in wanted.items():
            if _sha256(path / name) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{STATE} cannot be read"
    return None


def load(path: Path, recipe: Run, *, check: bool = True) -> Saved:
    """Reads a checkpoint of `recipe`. `check` False: it is known to be whole.

    Raises `TrainingError` if it is damaged, was written by a newer version, or belongs to another recipe; then the
    error names the fields that differ. Nothing in the files is executed.
    """
    from safetensors.torch import load_file

    if check and (problem := damage(path)) is not None:
        raise TrainingError(f"{path} is damaged ({problem})", "use the checkpoint before it, or start again")
    record = json.loads((path / STATE).read_bytes())
    if record.get("schema", SCHEMA) > SCHEMA:
        raise TrainingError(f"{path} was written by a newer Premeditate", "upgrade: pip install -U premeditate")
    try:
        before = identity(type(recipe).model_validate(record["recipe"]))
    except ValidationError:  # of a version whose recipes had other fields
        before = record["recipe"]
    if different := list(differences(before, identity(recipe))):
        raise TrainingError(
            f"{path} belongs to another recipe: {listed(different)}",
            "resume with the recipe of that run (recipe.yaml beside its log), or give another folder (out=...)",
        )
    rest = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    state = _with_tensors(record["state"], rest["state"])
    return Saved(path, record["step"], load_file(path / MODEL), rest["optimizer"], state)


def clean(out: Path) -> None:
    """Removes what a killed run left half written, and puts back a checkpoint that was being replaced."""
    folder = out / "checkpoints"
    for path in sorted(folder.glob(".*")) if folder.is_dir() else []:
        if path.name.startswith(_REPLACED):
            final = folder / path.name.removeprefix(_REPLACED)
            if not final.exists():
                os.rename(path, final)
        if path.name.startswith((_PARTIAL, _REPLACED)):
            shutil.rmtree(path, ignore_errors=True)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(m.group(1)) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name)) and path.is_dir()]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_tensors(value: Any, path: str, found: dict[str, Tensor]) -> Any:
    """`value` with each tensor replaced by its name in `found`."""
    if isinstance(value, Tensor):
        found[path] = value.detach().cpu()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {str(k): _without_tensors(v, f"{path}.{k}", found) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(v, f"{path}.{i}", found) for i, v in enumerate(value)]
    return value


def _with_tensors(value: Any, found: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return found[value[_TENSOR]]
        return {k: _with_tensors(v, found) for k, v in value.items()}
    return [_with_tensors(v, found) for v in value] if isinstance(value, list) else value
