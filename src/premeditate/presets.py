"""SPECs: how a user names a model. A preset's name, a folder, a hub id `org/name`, or an address (see
`premeditate.address`). What runs in this process is loaded once."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premeditate.address import is_address
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
    """A name for a model. `spec`: folder or hub id. `options`: defaults for the adapter. `about`: one line.

    `size_gb`: 10^9 bytes of weights in bfloat16, which is 2 bytes for each parameter of all parts (denoiser, text
    encoders, autoencoder, LoRA), counted from the published configurations. `memory_gb`: GPU memory for one megapixel
    with all parts resident: the weights and a tenth, an estimate that was not measured; offloading needs less.
    `licence`: of the weights; what their publisher says counts. `source`: an address. None and "": not known.
    """

    spec: str
    about: str
    options: dict[str, Any] = field(default_factory=dict)
    size_gb: float | None = None
    licence: str = ""

    @property
    def memory_gb(self) -> float | None:
        return None if self.size_gb is None else float(f"{1.1 * self.size_gb:.2g}")

    @property
    def source(self) -> str:
        return f"https://huggingface.co/{self.spec}" if _HUB_ID.fullmatch(self.spec) else ""


_APACHE = "Apache-2.0"
_QWEN = {"steps": 40, "true_cfg_scale": 4.0}


def _lightning(base: str, steps: int, lora: str) -> Preset:
    """Qwen-Image-Edit `base` ("", "-2509", "-2511") with a LoRA that was distilled to a few steps without guidance. It
    was trained with noise shifted by a factor of three whatever the size, so the scheduler has to do the same."""
    shift = {"base_shift": math.log(3), "max_shift": math.log(3), "shift": 1.0, "shift_terminal": None,
             "use_dynamic_shifting": True, "time_shift_type": "exponential"}  # fmt: skip
    options = {"steps": steps, "true_cfg_scale": 1.0, "lora": f"lightx2v/{lora}", "scheduler": shift}
    return Preset(f"Qwen/Qwen-Image-Edit{base}", f"Qwen-Image-Edit{base}, 20 B, {steps} steps", options, 58.5, _APACHE)


EDITORS: dict[str, Preset] = {
    "micro": Preset(
        str(_WEIGHTS / "editor"), "the tiny editor of the micro world (in the package)", _SCENES, 0.005, _APACHE
    ),
    "micro-base": Preset(
        str(_WEIGHTS / "editor-base"), "the same, deliberately unfinished", _SCENES, 0.005, _APACHE
    ),
    "flux-kontext": Preset(
        "black-forest-labs/FLUX.1-Kontext-dev", "FLUX.1 Kontext, 12 B", {"steps": 28, "guidance_scale": 2.5},
        33.7, "FLUX.1 [dev] Non-Commercial",
    ),
    "flux2-klein": Preset(
        "black-forest-labs/FLUX.2-klein-4B", "FLUX.2 klein, 4 B, 4 steps", {"steps": 4, "guidance_scale": 1.0},
        16.0, _APACHE,
    ),
    "flux2-klein-9b": Preset(
        "black-forest-labs/FLUX.2-klein-9B", "FLUX.2 klein, 9 B, 4 steps", {"steps": 4, "guidance_scale": 1.0},
        34.7, "FLUX Non-Commercial",
    ),
    "qwen-image-edit": Preset(
        "Qwen/Qwen-Image-Edit", "Qwen-Image-Edit, 20 B", {**_QWEN, "steps": 50}, 57.7, _APACHE
    ),
    "qwen-image-edit-2509": Preset(
        "Qwen/Qwen-Image-Edit-2509", "Qwen-Image-Edit-2509, 20 B, several images", _QWEN, 57.7, _APACHE
    ),
    "qwen-image-edit-2511": Preset(
        "Qwen/Qwen-Image-Edit-2511", "Qwen-Image-Edit-2511, 20 B, several images", _QWEN, 57.7, _APACHE
    ),
    "qwen-image-edit-lightning": _lightning(
        "", 8, "Qwen-Image-Lightning:Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors"
    ),
    "qwen-image-edit-lightning-4": _lightning(
        "", 4, "Qwen-Image-Lightning:Qwen-Image-Edit-Lightning-4steps-V1.0-bf16.safetensors"
    ),
    "qwen-image-edit-2509-lightning": _lightning(
        "-2509", 8,
        "Qwen-Image-Lightning:Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16.safetensors",
    ),
    "qwen-image-edit-2509-lightning-4": _lightning(
        "-2509", 4,
        "Qwen-Image-Lightning:Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors",
    ),
    "qwen-image-edit-2511-lightning": _lightning(
        "-2511", 8, "Qwen-Image-Edit-2511-Lightning:Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors"
    ),
    "qwen-image-edit-2511-lightning-4": _lightning(
        "-2511", 4, "Qwen-Image-Edit-2511-Lightning:Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors"
    ),
    "longcat-image-edit": Preset(
        "meituan-longcat/LongCat-Image-Edit", "LongCat-Image-Edit, 6 B", {"steps": 50, "guidance_scale": 4.5},
        29.3, _APACHE,
    ),
}  # fmt: skip
REASONERS: dict[str, Preset] = {
    "micro": Preset(
        str(_WEIGHTS / "reasoner"), "the tiny reasoner of the micro world (in the package)", {}, 0.002, _APACHE
    ),
    "micro-base": Preset(
        str(_WEIGHTS / "reasoner-base"), "the same, deliberately unfinished", {}, 0.002, _APACHE
    ),
    "qwen2.5-vl-3b": Preset("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL, 3 B", _MEGAPIXEL, 7.5, "Qwen Research"),
    "qwen2.5-vl-7b": Preset("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL, 7 B", _MEGAPIXEL, 16.6, _APACHE),
    "qwen3-vl-2b": Preset("Qwen/Qwen3-VL-2B-Instruct", "Qwen3-VL, 2 B", _MEGAPIXEL, 4.3, _APACHE),
    "qwen3-vl-4b": Preset("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL, 4 B", _MEGAPIXEL, 8.9, _APACHE),
    "qwen3-vl-8b": Preset("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL, 8 B", _MEGAPIXEL, 17.5, _APACHE),
}  # fmt: skip

_loaded: dict[tuple[str, str, str], Any] = {}
_lock = threading.Lock()


def load_editor(spec: str, **options: Any) -> Editor | list[Any]:
    """The editor that `spec` names, loaded once per process for each (spec, options); for an address a list of
    endpoints, which `premeditate.engine.pooled.pooled` makes one editor of.

    `options`: see `premeditate.editors.diffusers.DiffusersEditor.load`. Raises `ModelError`, a ValueError.
    """
    if isinstance(spec, str) and is_address(spec):
        from premeditate.editors.addresses import open_editors

        return open_editors(spec, **options)

    def load(model: str, settings: dict[str, Any]) -> Editor:
        from premeditate.editors.diffusers import DiffusersEditor

        return DiffusersEditor.load(model, **settings)

    return _load("editor", EDITORS, "model_index.json", load, spec, options)


def load_reasoner(spec: str, **options: Any) -> Reasoner | list[Any]:
    """The reasoner that `spec` names, as `load_editor`.

    `options`: see `premeditate.reasoners.transformers.TransformersReasoner.load`. Raises `ModelError`, a ValueError.
    """
    if isinstance(spec, str) and is_address(spec):
        from premeditate.reasoners.addresses import open_reasoners

        return open_reasoners(spec, **options)

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
        raise ModelError(f"{spec} is an address", "a model in this process is a preset, a folder or a hub id org/name")
    if _HUB_ID.fullmatch(spec) and not spec.startswith("."):
        return Preset(spec, "a hub repository")
    raise ModelError(
        f"there is no {kind} {spec!r}",
        f"did you mean {nearest(spec, list(presets))}? Or give a folder, a hub id org/name or an address",
    )
