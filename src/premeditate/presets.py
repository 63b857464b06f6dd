"""SPECs: how a user names a model. A preset's name, a folder, or a hub id `org/name`; loaded once per process."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premeditate.errors import ModelError
from premeditate.local import nearest

if TYPE_CHECKING:
    from premeditate.editors.base import Editor
    from premeditate.reasoners.base import Reasoner

_WEIGHTS = Path(__file__).parent / "microworld" / "weights"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

_SCENES = {"domain": "premeditate.microworld.verifier:require_scene"}
_MEGAPIXEL = {"max_pixels": 1 << 20}
"""Qwen-VL reads up to 12 megapixels by itself, which takes minutes and gigabytes for one picture."""


@dataclass(frozen=True)
class Preset:
    """A name for a model. `spec`: folder or hub id. `options`: defaults for the adapter. `about`: one line."""

    spec: str
    about: str
    options: dict[str, Any] = field(default_factory=dict)


EDITORS: dict[str, Preset] = {
    "micro": Preset(str(_WEIGHTS / "editor"), "the tiny editor of the micro world (in the package)", _SCENES),
    "micro-base": Preset(str(_WEIGHTS / "editor-base"), "the same, deliberately unfinished", _SCENES),
    "flux-kontext": Preset(
        "black-forest-labs/FLUX.1-Kontext-dev", "FLUX.1 Kontext, 12 B", {"steps": 28, "guidance_scale": 2.5}
    ),
    "flux2-klein": Preset(
        "black-forest-labs/FLUX.2-klein-4B", "FLUX.2 klein, 4 B, 4 steps", {"steps": 4, "guidance_scale": 1.0}
    ),
    "qwen-image-edit": Preset("Qwen/Qwen-Image-Edit", "Qwen-Image-Edit, 20 B", {"steps": 50, "true_cfg_scale": 4.0}),
    "qwen-image-edit-2509": Preset(
        "Qwen/Qwen-Image-Edit-2509", "Qwen-Image-Edit-2509, 20 B", {"steps": 40, "true_cfg_scale": 4.0}
    ),
    "qwen-image-edit-2511": Preset(
        "Qwen/Qwen-Image-Edit-2511", "Qwen-Image-Edit-2511, 20 B", {"steps": 40, "true_cfg_scale": 4.0}
    ),
    "longcat-image-edit": Preset("meituan-longcat/LongCat-Image-Edit", "LongCat-Image-Edit, 6 B", {"steps": 50}),
}
REASONERS: dict[str, Preset] = {
    "micro": Preset(str(_WEIGHTS / "reasoner"), "the tiny reasoner of the micro world (in the package)"),
    "micro-base": Preset(str(_WEIGHTS / "reasoner-base"), "the same, deliberately unfinished"),
    "qwen2.5-vl-3b": Preset("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL, 3 B", _MEGAPIXEL),
    "qwen2.5-vl-7b": Preset("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL, 7 B", _MEGAPIXEL),
    "qwen3-vl-2b": Preset("Qwen/Qwen3-VL-2B-Instruct", "Qwen3-VL, 2 B", _MEGAPIXEL),
    "qwen3-vl-4b": Preset("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL, 4 B", _MEGAPIXEL),
    "qwen3-vl-8b": Preset("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL, 8 B", _MEGAPIXEL),
}

_loaded: dict[tuple[str, str, str], Any] = {}
_lock = threading.Lock()


def load_editor(spec: str, **options: Any) -> Editor:
    """The editor that `spec` names, loaded once per process for each (spec, options).

    `options`: see `premeditate.editors.diffusers.DiffusersEditor.load`. Raises `ModelError`, a ValueError.
    """

    def load(model: str, settings: dict[str, Any]) -> Editor:
        from premeditate.editors.diffusers import DiffusersEditor

        return DiffusersEditor.load(model, **settings)

    return _load("editor", EDITORS, "model_index.json", load, spec, options)


def load_reasoner(spec: str, **options: Any) -> Reasoner:
    """The reasoner that `spec` names, loaded once per process for each (spec, options).

    `options`: see `premeditate.reasoners.transformers.TransformersReasoner.load`. Raises `ModelError`, a ValueError.
    """

    def load(model: str, settings: dict[str, Any]) -> Reasoner:
        from premeditate.reasoners.transformers import TransformersReasoner

        return TransformersReasoner.load(model, **settings)

    return _load("reasoner", REASONERS, "config.json", load, spec, options)


def resolve(kind: str, spec: str) -> Preset:
    """What `spec` stands for, without loading it. `kind`: "editor" or "reasoner". Raises `ModelError` for what is
    neither a preset, a folder of that kind, nor the form of a hub id."""
    presets, index = (EDITORS, "model_index.json") if kind == "editor" else (REASONERS, "config.json")
    return _resolve(kind, presets, index, spec)


def _load(
    kind: str,
    presets: dict[str, Preset],
    index: str,
    load: Callable[[str, dict[str, Any]], Any],
    spec: str,
    options: dict[str, Any],
) -> Any:
    preset = _resolve(kind, presets, index, spec)
    # What a name is cached under must follow the folder it names, should the working directory change.
    where = str(Path(preset.spec).resolve()) if Path(preset.spec).is_dir() else preset.spec
    key = (kind, where, json.dumps({"name": spec, **preset.options, **options}, sort_keys=True, default=repr))
    with _lock:
        if key not in _loaded:
            _loaded[key] = load(preset.spec, {"name": spec, **preset.options, **options})
        return _loaded[key]


def _resolve(kind: str, presets: dict[str, Preset], index: str, spec: str) -> Preset:
    if not isinstance(spec, str) or not spec.strip():
        raise ModelError(f"the {kind} is {spec!r}", f"name one: {', '.join(presets)}, a folder, or a hub id org/name")
    if spec in presets:
        preset = presets[spec]
        folder = Path(preset.spec)
        if folder.is_absolute() and not (folder / index).is_file():
            raise ModelError(
                f"the weights of {spec} are not in this installation",
                f"install the package again, or train them: premeditate microworld train {kind}",
            )
        return preset
    folder = Path(spec)
    if folder.is_dir():
        if (folder / index).is_file():
            return Preset(spec, "a folder")
        what = {"editor": "a diffusers pipeline", "reasoner": "a transformers vision-language model"}[kind]
        other = "; it looks like a reasoner" if kind == "editor" and (folder / "config.json").is_file() else ""
        other = "; it looks like an editor" if kind == "reasoner" and (folder / "model_index.json").is_file() else other
        raise ModelError(f"{spec} holds no {index}{other}", f"give the folder of {what}")
    if folder.exists():
        raise ModelError(f"{spec} is a file", f"give a folder, a hub id org/name, or one of {', '.join(presets)}")
    if spec.startswith(("http:", "https:")):
        raise ModelError(f"{spec} is an address", "give the hub id org/name, or a folder that you downloaded")
    if _HUB_ID.fullmatch(spec) and not spec.startswith("."):
        return Preset(spec, "a hub repository")
    raise ModelError(
        f"there is no {kind} {spec!r}",
        f"did you mean {nearest(spec, list(presets))}? Or give a folder or a hub id org/name",
    )
