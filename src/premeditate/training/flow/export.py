"""What training made, as files that plain diffusers loads: LoRA weights or a whole transformer, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from premeditate.errors import ModelError
from premeditate.files import write_atomic
from premeditate.local import SIDECAR
from premeditate.presets import EDITORS, resolve
from premeditate.training.flow.adapters.base import FlowAdapter
from premeditate.training.recipe import Recipe
from premeditate.training.weights import replacing

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for."""
CARD = "README.md"


@dataclass(frozen=True)
class ModelCard:
    """What is said of exported weights. `base`: the SPEC of the editor they were trained from. `recipe`: YAML. `data`:
    SHA-256 of the `tasks` tasks. `evaluations`: figures of the held-out tasks, each with its "step" and any of
    "eval/NAME", "eval/NAME/low", "eval/NAME/high" and "eval/NAME/n". `picture`: a picture of the curve, copied.
    `options`: of `DiffusersEditor`, as the model was trained; the folder's `premeditate.json` holds them."""

    base: str
    recipe: str
    data: str
    tasks: int
    evaluations: Sequence[Mapping[str, Any]] = ()
    picture: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def write(adapter: FlowAdapter, folder: Path, recipe: Recipe, card: Mapping[str, Any],
          *, values: Mapping[str, Tensor] | None = None) -> None:  # fmt: skip
    """Exports what `recipe` trained in `adapter`. `card`: the fields of `ModelCard` but `base` and `options`. `values`:
    see `export_lora`. Raises `WriteError`."""
    model = recipe.model
    padded = isinstance(model.text_tokens, int) and not adapter.exact_text
    options = {"size": model.size, "steps": recipe.evaluation.steps or recipe.rollout.steps,
               "guidance_scale": model.guidance_scale, "true_cfg_scale": model.true_cfg_scale,
               "max_sequence_length": model.text_tokens if padded else None}  # fmt: skip
    said = ModelCard(base=model.base, **card, options={k: v for k, v in options.items() if v is not None})
    export = export_full if model.lora is None else export_lora
    export(adapter.transformer, folder, pipeline_class=adapter.pipeline_class, card=said, values=values)


def export_lora(
    transformer: Any, folder: Path, *, pipeline_class: str, card: ModelCard, values: Mapping[str, Tensor] | None = None
) -> Path:
    """Writes the LoRA weights of `add_lora` for `pipe.load_lora_weights(folder)`, with their rank and alpha, and the
    card. Returns the weights' file; an older one is replaced whole or not at all.

    `values`: parameters by name (as in `named_parameters`) that are written in place of the transformer's own, for
    example a moving average. Raises `WriteError`, and `ModelError` without LoRA.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save

    if not getattr(transformer, "peft_config", None):
        raise ModelError("the transformer has no LoRA to export", "use export_full for a model that was trained whole")
    own = transformer.state_dict()
    state = get_peft_model_state_dict(transformer, state_dict={**own, **_known(own, values)})
    weights = {f"transformer.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    config = {f"transformer.{k}": sorted(v) if isinstance(v, set) else v
              for k, v in transformer.peft_config["default"].to_dict().items()}  # fmt: skip
    said = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(config, sort_keys=True)}
    file = write_atomic(folder / WEIGHTS, save(weights, said))
    _write_card(folder, card, pipeline_class, _LORA)
    return file


def export_full(
    transformer: Any, folder: Path, *, pipeline_class: str, card: ModelCard, values: Mapping[str, Tensor] | None = None
) -> Path:
    """Writes the whole transformer into folder/transformer for `from_pretrained(folder, subfolder="transformer")`, and
    the card. Returns that folder; an older one stays until the new one is complete. `values`, errors: as for
    `export_lora`."""
    import torch

    own = transformer.state_dict()
    # A sharded model's class is one made on the fly; the one in diffusers is what is saved.
    kind: Any = next(k for k in type(transformer).__mro__ if k.__module__.startswith("diffusers."))
    with torch.device("meta"):
        plain = kind.from_config(transformer.config)
    plain.load_state_dict({**own, **_known(own, values)}, assign=True)
    target = folder / "transformer"
    with replacing(target) as new:
        plain.save_pretrained(new, safe_serialization=True)
    _write_card(folder, card, pipeline_class, _FULL.replace("TRANSFORMER", kind.__name__))
    return target


def _known(own: Mapping[str, Tensor], values: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """`values`, each of which must be one of `own` in another state."""
    for name, value in (values or {}).items():
        if name not in own or own[name].shape != value.shape:
            what = "is none of its parameters" if name not in own else f"has the shape {tuple(value.shape)}"
            raise ValueError(
                f"the value {name!r} for the transformer {what}; take names and shapes from its state_dict()"
            )
    return values or {}


# -- the card ---------------------------------------------------------------------------------------------------------

_LORA = """\
```python
from diffusers import PIPELINE
from PIL import Image

pipe = PIPELINE.from_pretrained(BASE)
pipe.load_lora_weights(folder)  # this folder
edit = pipe(image=Image.open("photo.png").convert("RGB"), prompt="...").images[0]
```

With Premeditate:

```python
from premeditate.presets import load_editor

editor = load_editor("SPEC", lora=folderOPTIONS)
```

As a model of its own, for `premeditate edit photo.png "..." --editor ./editor`:

```python
import shutil

pipe.fuse_lora()
pipe.unload_lora_weights()
pipe.save_pretrained("editor")
shutil.copy(f"{folder}/premeditate.json", "editor")
```
"""
_FULL = """\
```python
from diffusers import PIPELINE, TRANSFORMER
from PIL import Image

transformer = TRANSFORMER.from_pretrained(folder, subfolder="transformer")  # this folder
pipe = PIPELINE.from_pretrained(BASE, transformer=transformer)
edit = pipe(image=Image.open("photo.png").convert("RGB"), prompt="...").images[0]
```

As a model of its own, for `premeditate edit photo.png "..." --editor ./editor`:

```python
import shutil

pipe.save_pretrained("editor")
shutil.copy(f"{folder}/premeditate.json", "editor")
```
"""


def _write_card(folder: Path, card: ModelCard, pipeline_class: str, use: str) -> None:
    picture = ""
    if card.picture is not None:
        picture = card.picture.name
        if card.picture.resolve() != (folder / picture).resolve():
            write_atomic(folder / picture, card.picture.read_bytes())
    write_atomic(folder / SIDECAR, (json.dumps(dict(card.options), indent=2) + "\n").encode())
    write_atomic(folder / CARD, render(card, pipeline_class, use, picture).encode())


def render(card: ModelCard, pipeline_class: str, use: str, picture: str = "") -> str:
    """The model card as Markdown with the hub's YAML head. `use`: how to load the weights, with placeholders."""
    preset = resolve("editor", card.base)
    hub = preset.spec if preset.source else ""
    licence = preset.licence and (preset.licence.lower() if preset.licence == "Apache-2.0" else "other")
    head = {"library_name": "diffusers", "pipeline_tag": "image-to-image", "base_model": hub, "license": licence}
    shipped = card.base in EDITORS and not hub
    where = f'resolve("editor", "{card.base}").spec' if shipped else json.dumps(hub or card.base)
    if shipped:
        use = use.replace(
            "from PIL import Image\n", "from PIL import Image\nfrom premeditate.presets import resolve\n", 1
        )
    steps = use.replace("PIPELINE", pipeline_class).replace("BASE", where).replace("SPEC", card.base)
    steps = steps.replace("OPTIONS", "".join(f", {name}={value!r}" for name, value in card.options.items()))
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items() if value),
        "---",
        "",
        f"# {card.base}, trained",
        "",
    ]
    about = f"[{card.base}]({preset.source})" if hub else f"`{card.base}`"
    lines += [f"{about}, trained by reinforcement learning with Premeditate."]
    if preset.licence:
        lines += [f"The base's licence is {preset.licence}; it says what holds for weights made from it."]
    lines += ["", "## Use", "", steps, "## Held-out figures", "", *_table(card.evaluations), ""]
    if picture:
        lines += [f"![held-out figures while training]({picture})", ""]
    lines += ["## Training", "", f"{card.tasks:,} tasks, SHA-256 `{card.data}`. The recipe:", ""]
    return "\n".join([*lines, "```yaml", card.recipe.rstrip(), "```", ""])


def _table(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each evaluation and a column for each figure, with its interval."""
    ends = ("/low", "/high", "/n")
    names = sorted({key for row in evaluations for key in row if key.startswith("eval/") and not key.endswith(ends)})
    if not names:
        return ["None were taken."]

    def cell(row: Mapping[str, Any], name: str) -> str:
        if row.get(name) is None:
            return "-"
        low, high = row.get(f"{name}/low"), row.get(f"{name}/high")
        return f"{row[name]:.3f}" + (f" ({low:.3f} - {high:.3f})" if low is not None and high is not None else "")

    counts = {int(row[f"{name}/n"]) for row in evaluations for name in names if row.get(f"{name}/n")}
    many = f", n = {' or '.join(f'{n:,}' for n in sorted(counts))}" if counts else ""
    shown = [name.removeprefix("eval/") for name in names]
    return [
        f"Means with 95 % intervals{many}.", "", f"| step | {' | '.join(shown)} |", "|---" * (len(names) + 1) + "|",
        *(f"| {row.get('step', '-')} | {' | '.join(cell(row, name) for name in names)} |" for row in evaluations),
    ]  # fmt: skip
