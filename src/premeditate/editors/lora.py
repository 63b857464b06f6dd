"""LoRA weights: what names them, and how they are added to a pipeline."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from premeditate.errors import ModelError
from premeditate.local import load_failure

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Lora:
    """`where`: a folder or a hub id. `file`: the safetensors file in it; None: the repository has one. `scale`: how
    strongly it is applied, 0 not at all, 1 as trained."""

    where: str
    file: str | None
    scale: float


def find_loras(lora: str | Sequence[str] | None, scale: float = 1.0) -> list[Lora]:
    """What the options `lora` and `lora_scale` name: see `DiffusersEditor.load`. Raises `ModelError`."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ModelError(f"the editor option lora_scale is {scale!r}", "give a number, for example 0.8")
    if lora is None or isinstance(lora, str):
        lora = (lora or "").split(",")
    return [_find_lora(text.strip(), float(scale)) for text in lora if text.strip()]


def _find_lora(text: str, scale: float) -> Lora:
    name, at, number = text.rpartition("@")
    if at and not Path(text).exists():
        try:
            if not math.isfinite(scale := float(number)):
                raise ValueError(number)
            text = name
        except ValueError:
            raise ModelError(f"the scale in the LoRA {text!r} is no number", "write it like name@0.8") from None
    path, file = Path(text).expanduser(), None
    if not path.exists() and ":" in text:
        text, _, file = text.rpartition(":")
        path = Path(text).expanduser()
    if path.is_file() and file is None:
        path, file = path.parent, path.name
    if file is not None and not file.endswith(".safetensors"):
        raise ModelError(f"the LoRA {file} is no safetensors file", "convert it: other formats can run code")
    if path.is_dir():
        held = sorted(p.name for p in path.glob("*.safetensors"))
        if file is None and len(held) != 1:
            which = f"{len(held)} safetensors files" if held else "no safetensors file"
            raise ModelError(f"{path} holds {which}", f"name one: {path}:{held[0] if held else 'lora.safetensors'}")
        if file is not None and not (path / file).is_file():
            raise ModelError(f"there is no {file} in {path}", f"it holds {', '.join(held) or 'no safetensors file'}")
        return Lora(str(path), file or held[0], scale)
    if not _HUB_ID.fullmatch(text):
        raise ModelError(f"there is no LoRA {text!r}", "give a file, a folder, org/name or org/name:file.safetensors")
    return Lora(text, file, scale)


def add_loras(pipeline: Any, adapters: Sequence[Lora]) -> None:
    for i, lora in enumerate(adapters):
        where = {
            "adapter_name": f"lora{i}", "use_safetensors": True, "weight_name": lora.file,
            "local_files_only": Path(lora.where).is_dir(),
        }  # fmt: skip
        try:
            if hasattr(pipeline, "load_lora_weights"):
                pipeline.load_lora_weights(lora.where, **where)
            elif hasattr(network(pipeline), "load_lora_adapter"):  # LongCat's pipeline has no loader of its own
                network(pipeline).load_lora_adapter(lora.where, prefix="transformer", **where)
            else:
                raise ModelError(f"{type(pipeline).__name__} takes no LoRA", "leave that option out")
        except ModelError:
            raise
        except Exception as error:
            raise load_failure(lora.where, error) from error
        # Weights of another model are left out with no more than a warning.
        if not any(f"lora{i}" in getattr(part, "peft_config", {}) for part in pipeline.components.values()):
            raise ModelError(
                f"the LoRA {lora.file or lora.where} holds nothing for {type(pipeline).__name__}",
                "give one that was trained for this model",
            )
    if adapters:
        target = pipeline if hasattr(pipeline, "set_adapters") else network(pipeline)
        target.set_adapters([f"lora{i}" for i in range(len(adapters))], [lora.scale for lora in adapters])


def network(pipeline: Any) -> Any:
    """The part that denoises."""
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
