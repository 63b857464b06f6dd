"""What works here, what does not, and what to do about it: the checks behind `premeditate doctor`.

Each check is a generator of `Check`s that asks nothing of the network, and does not raise for what it finds.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from premeditate import machine, presets
from premeditate.address import is_address
from premeditate.errors import PremeditateError, one_line
from premeditate.files import check_writable
from premeditate.local import quiet

State = Literal["works", "off", "broken"]
EXTRAS = {"train": "training", "serve": "the service", "dev": "working on Premeditate itself"}
ADAPTERS = {
    "editors.diffusers": "editors in this process",
    "editors.openai_images": "editors behind the OpenAI images API (vLLM-Omni, SGLang, OpenAI)",
    "editors.editthinker": "EditThinker's services",
    "editors.callable": "editors of your own",
    "reasoners.transformers": "reasoners in this process",
    "reasoners.openai_chat": "reasoners behind the OpenAI chat API (vLLM, SGLang, llama.cpp, Ollama, OpenAI)",
    "reasoners.callable": "reasoners of your own",
}
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
"""Libraries that are imported by another name."""
_REQUIREMENT = re.compile(
    r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;.*extra\s*==\s*[\"']([\w-]+)[\"'].*)?"
)
_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Check:
    """`state`: "off" is something that is absent and not needed by default. `said`: what was found. `mend`: what to do
    about it. `vital`: without it nothing works by default."""

    part: str
    name: str
    state: State
    said: str
    mend: str = ""
    vital: bool = False


def versions() -> Iterator[Check]:
    """Python and the libraries against our bounds, and whether each can be imported at all."""
    bounds = requirements()
    mend = "" if bounds else "pip install premeditate"
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("versions", "python", "works" if sys.version_info >= (3, 11) else "broken", python, "use 3.11 or later",
                vital=True)  # fmt: skip
    if not bounds:
        yield Check("versions", "premeditate", "off", "is not installed: the versions it needs are not known", mend)
    for name, bound, extra in bounds:
        if not extra:
            yield _library("versions", name, bound, f"pip install '{name}{bound}'", vital=True)


def extras() -> Iterator[Check]:
    """The optional parts: which of their libraries are here."""
    by_extra: dict[str, list[tuple[str, str]]] = {}
    for name, bound, extra in requirements():
        if extra:
            by_extra.setdefault(extra, []).append((name, bound))
    for extra, wanted in by_extra.items():
        found = [_library("extras", name, bound, "", importing=False) for name, bound in wanted]
        lacking = [check for check in found if check.state != "works"]
        said = f"{EXTRAS.get(extra, extra)}: " + (
            ", ".join(f"{check.name} {check.said}" for check in lacking) if lacking else "all here"
        )
        yield Check("extras", extra, "off" if lacking else "works", said, f"pip install 'premeditate[{extra}]'")


def requirements() -> list[tuple[str, str, str]]:
    """(name, bounds, extra or "") of everything we ask for; [] where we are neither installed nor in a checkout."""
    lines: list[str] = []
    with suppress(metadata.PackageNotFoundError):
        lines = metadata.requires("premeditate") or []
    project = _ROOT.parent.parent / "pyproject.toml"
    if not lines and project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        lines = list(table.get("dependencies", []))
        for extra, wanted in table.get("optional-dependencies", {}).items():
            lines += [f'{line}; extra == "{extra}"' for line in wanted]
    found = [_REQUIREMENT.fullmatch(line) for line in lines]
    return [(match[1], match[2].replace(" ", ""), match[3] or "") for match in found if match]


def _library(part: str, name: str, bound: str, mend: str, *, vital: bool = False, importing: bool = True) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(part, name, "broken", "is missing", mend, vital)
    if not within(version, bound):
        return Check(part, name, "broken", f"{version}, needed is {bound}", mend, vital)
    if importing:
        try:
            importlib.import_module(MODULES.get(name.lower(), name))
        except Exception as error:  # whatever an import may run into
            return Check(part, name, "broken", f"{version} cannot be imported: {one_line(error)}", mend, vital)
    return Check(part, name, "works", version + (f" ({bound})" if bound else ""), vital=vital)


def within(version: str, bounds: str) -> bool:
    """Whether "2.13.0+cpu" lies in ">=2.11,<2.14". Only release numbers are compared."""
    here = _numbers(version)
    for bound in filter(None, bounds.split(",")):
        match = re.fullmatch(r"(>=|<=|==|!=|~=|<|>)(.+)", bound)
        if match is None:
            continue
        other = _numbers(match[2])
        long = max(len(here), len(other))
        a, b = (numbers + (0,) * (long - len(numbers)) for numbers in (here, other))
        ok = {">=": a >= b, "~=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[match[1]]
        if not ok:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()


def devices() -> Iterator[Check]:
    """What torch can compute on, in which number formats."""
    try:
        found = machine.devices()
    except Exception as error:
        yield Check("devices", "torch", "broken", one_line(error), "install torch again", vital=True)
        return
    for device in found:
        memory = "" if device.memory_gb is None else f", {device.memory_gb:.0f} GB"
        state: State = "works" if "float32" in device.dtypes else "broken"
        yield Check("devices", device.name, state, f"{device.what}{memory}; {', '.join(device.dtypes) or 'nothing'}",
                    "install the torch that fits its driver", vital=device.name == "cpu")  # fmt: skip
    if len(found) == 1:
        yield Check("devices", "accelerator", "off", "torch sees no GPU: real editors would take minutes to hours",
                    "install torch for your GPU (pytorch.org), or give a server's address")  # fmt: skip


def torchvision() -> Iterator[Check]:
    """None is needed; a broken one is worse than none, because transformers imports whatever there is."""
    if importlib.util.find_spec("torchvision") is None:
        yield Check("libraries", "torchvision", "works", "not here, and not needed")
        return
    try:
        importlib.import_module("torchvision")  # a build for another torch fails here, where it registers its operators
        yield Check("libraries", "torchvision", "works", f"{metadata.version('torchvision')}, not needed")
    except Exception as error:
        yield Check("libraries", "torchvision", "broken", f"is here and cannot be used: {one_line(error)}",
                    "pip uninstall torchvision, or install the one that fits this torch")  # fmt: skip


def pipelines() -> Iterator[Check]:
    """The diffusers pipelines that we know by name."""
    from premeditate.editors.pipelines import TRAITS

    for name in TRAITS:
        try:
            with quiet("diffusers", "transformers"):
                getattr(importlib.import_module("diffusers"), name)
            yield Check("pipelines", name, "works", "can be imported")
        except Exception as error:
            yield Check("pipelines", name, "broken", one_line(error), "pip install -U diffusers transformers")


def adapters() -> Iterator[Check]:
    for name, what in ADAPTERS.items():
        try:
            importlib.import_module(f"premeditate.{name}")
            yield Check("adapters", name, "works", what)
        except Exception as error:
            yield Check("adapters", name, "broken", f"{what}: {one_line(error)}", "see what is broken above")


def weights() -> Iterator[Check]:
    """The tiny models of the package: every file of tensors is there, and as long as its header says."""
    for model in ("editor", "reasoner", "editor-base", "reasoner-base"):
        folder = _ROOT / "microworld" / "weights" / model
        vital, mend = not model.endswith("-base"), "install Premeditate again"
        files = sorted(folder.rglob("*.safetensors"))
        wrong = [f"{file.relative_to(folder)} {problem}" for file in files if (problem := damage(file))]
        size = sum(file.stat().st_size for file in files) / 1e6
        if not files:
            yield Check("weights", f"micro {model}", "broken", "is not in this installation", mend, vital)
        elif wrong:
            yield Check("weights", f"micro {model}", "broken", "; ".join(wrong), mend, vital)
        else:
            yield Check("weights", f"micro {model}", "works", f"whole, {size:.1f} MB", vital=vital)


def damage(file: Path) -> str:
    """What is wrong with a safetensors file, by its header and length; "" where nothing is."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if length > 100_000_000:
                return "is no safetensors file"
            header = json.loads(data.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            wanted = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be read ({one_line(error)})"
    size = file.stat().st_size
    return "" if size == wanted else f"has {size:,} bytes of {wanted:,}"


def offline() -> str:
    """The variable that forbids downloads; "" where none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((n for n in names if os.environ.get(n, "").lower() not in ("", "0", "false", "no", "off")), "")


def hub() -> Iterator[Check]:
    """Whether models may be downloaded, and to where. Nothing is asked of the network."""
    cache = machine.hub_cache()
    if variable := offline():
        yield Check("hub", "downloads", "off", f"{variable} is set: only what is in the cache can be used",
                    f"unset {variable}")  # fmt: skip
    else:
        yield Check("hub", "downloads", "works", "allowed (the network was not tried)")
    held = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    yield _writable("hub", "cache", cache, f"{cache}: {held} model{'' if held == 1 else 's'}, {free:.0f} GB free",
                    "set HF_HOME to a folder that you may write to")  # fmt: skip


def surroundings() -> Iterator[Check]:
    """Where results go."""
    for name, folder in (("this folder", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        yield _writable("surroundings", name, folder, str(folder), "go to a folder that you may write to")
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    state: State = "works" if encoding.replace("-", "").startswith("utf") else "off"
    yield Check("surroundings", "terminal", state, encoding, "set PYTHONUTF8=1, or LANG to a UTF-8 locale")


def _writable(part: str, name: str, folder: Path, said: str, mend: str) -> Check:
    try:
        check_writable(folder / "file")
    except PremeditateError as error:
        return Check(part, name, "broken", error.problem, mend)
    return Check(part, name, "works", said)


def self_test() -> Iterator[Check]:
    """One edit of the micro world, end to end, with the tiny models of the package."""
    from premeditate.benchmarks import microworld

    start = time.perf_counter()
    try:
        report = microworld.run(1, seed=0)
    except Exception as error:
        yield Check("self-test", "one edit", "broken", one_line(error), "see what is broken above", vital=True)
        return
    (row,) = report.rows
    spent = f"{report.seconds:.1f} s, and {time.perf_counter() - start - report.seconds:.1f} s to load the models"
    if row.success is None:
        yield Check("self-test", "one edit", "broken", row.error or "no picture came", "see above", vital=True)
        return
    right = "exactly right" if row.success else "made, though not exactly right"
    rounds = f"{row.rounds} round{'' if row.rounds == 1 else 's'}"
    yield Check("self-test", "one edit", "works", f"{right}, in {rounds}: {spent}", vital=True)


def named(kind: Literal["editor", "reasoner"], spec: str) -> Iterator[Check]:
    """A model that the user names: for addresses whether each answers and what it honours (this does use the network),
    for others where the weights are and whether they fit. All of it is vital: it was asked for."""
    try:
        if is_address(spec):
            endpoints = (presets.load_editor if kind == "editor" else presets.load_reasoner)(spec)
            yield from asyncio.run(_ask(kind, endpoints if isinstance(endpoints, list) else [endpoints]))
            return
        preset = presets.resolve(kind, spec)
    except PremeditateError as error:
        yield Check(kind, spec, "broken", error.problem, error.mend, vital=True)
        return
    place = machine.where(preset.spec, preset.size_gb)
    fits, how = machine.fits(preset.memory_gb, machine.devices())
    here = place in ("here", "in the package", "in the cache")
    state: State = "works" if here else "broken" if offline() else "off"
    later = "" if here or offline() else ", and will be downloaded at the first use"
    yield Check(kind, spec, state, f"the weights are {place}{later}", f"hf download {preset.spec}", vital=True)
    needed = "" if preset.memory_gb is None else f" (needs about {preset.memory_gb:g} GB of GPU memory)"
    yield Check(kind, "fits", "off" if fits is None else "works" if fits else "broken", how + needed,
                "serve it on another machine and give its address", vital=True)  # fmt: skip


async def _ask(kind: str, endpoints: Iterable[Any]) -> list[Check]:
    return list(await asyncio.gather(*(_ask_one(kind, endpoint) for endpoint in endpoints)))


async def _ask_one(kind: str, endpoint: Any) -> Check:
    try:
        health = await endpoint.health()
        await endpoint.prepare()
    except PremeditateError as error:
        return Check(kind, endpoint.host, "broken", error.problem, error.mend, vital=True)
    finally:
        await endpoint.aclose()
    about = [f"{key}: {value}" for key, value in endpoint.describe().items() if key != "endpoint"]
    room = [] if health.capacity is None else [f"{health.capacity} calls at a time"]
    return Check(kind, endpoint.host, "works", "; ".join(["up", *about, *room]), vital=True)


def examine(checks: Iterable[Callable[[], Iterator[Check]]]) -> Iterator[Check]:
    """Every check's findings. One that breaks down itself is a finding too: an examination goes to its end."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = getattr(check, "__name__", "check")
            yield Check(
                "examination", name, "broken", one_line(error), "see what is broken above; else please report it"
            )
