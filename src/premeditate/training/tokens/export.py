"""A trained judge as a folder that `load_reasoner` and plain transformers load, with a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from premeditate.local import SIDECAR
from premeditate.presets import REASONERS, Preset
from premeditate.prompts.verify import Mode
from premeditate.training.tokens.settings import plain
from premeditate.training.weights import replacing

CARD = "README.md"


@dataclass(frozen=True)
class Card:
    """What is said of it. `base`: the SPEC that it was trained from, `preset`: what that stands for. `mode`: of its
    answers. `text`: the recipe as YAML. `data`: what was learnt from, in words, and its SHA-256. `evaluations`: rows of
    the journal. `method`: how it was trained."""

    base: str
    preset: Preset
    mode: Mode
    text: str
    data: str
    digest: str
    evaluations: Sequence[Mapping[str, Any]] = ()
    method: str = "the cold start of Edit-RRM, arXiv 2604.27505"


def write(folder: Path, model: Any, processor: Any, sidecar: Mapping[str, Any], dtype: Any, card: Card) -> Path:
    """Writes `model` in `dtype` (it is changed in place), its tokenizer, image processor and sidecar. Its settings of
    generation are those that it is trained with (`plain`), whatever its base's are. A folder that is there stays until
    the new one is complete. Raises `WriteError`."""
    tokenizer = processor.tokenizer
    model.generation_config = plain(model, tokenizer)
    tokenizer.chat_template = processor.chat_template
    with replacing(folder) as new:
        model.to(dtype).save_pretrained(new)
        tokenizer.save_pretrained(new)
        processor.image_processor.save_pretrained(new)
        (new / SIDECAR).write_text(json.dumps(dict(sidecar)) + "\n", encoding="utf-8")
        (new / CARD).write_text(render(card), encoding="utf-8")
    return folder


def render(card: Card) -> str:
    """The card as Markdown with the hub's YAML head."""
    base, preset = card.base, card.preset
    hub = preset.spec if preset.source else ""
    licence = preset.licence and (preset.licence.lower() if preset.licence == "Apache-2.0" else "other")
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "base_model": hub, "license": licence}
    about = f"[{base}]({preset.source})" if hub else f"`{base}`" if base in REASONERS else "A model of its own"
    holds = {"think": "a thought and a score", "verify": "a verdict per principle and a score",
             "both": "a thought, a verdict per principle and a score"}[card.mode]  # fmt: skip
    return "\n".join([
        "---", *(f"{key}: {value}" for key, value in head.items() if value), "---", "",
        f"# {base if hub or base in REASONERS else 'A vision-language model'}, trained to judge edits", "",
        f"{about}, trained with Premeditate to judge an image edit by principles ({card.method}). An answer "
        f"holds {holds}.",
        *([f"The base's licence is {preset.licence}; it says what holds for weights made from it."]
          if preset.licence else []),
        "", "## Use", "", "```yaml", "rewards:", f'  - use: "rrm[mode={card.mode}]:FOLDER"  # this folder', "```", "",
        "It writes from its plain logits, as it was trained: `generation_config.json` holds no penalty for repetition, "
        "no temperature and no filter, whatever its base's does.", "",
        "## Held-out figures", "", *_table(card.evaluations), "",
        "## Training", "", f"{card.data}. SHA-256 of what was learnt from: `{card.digest}`. The recipe:", "",
        "```yaml", card.text.rstrip(), "```", "",
    ])  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each evaluation and a column for each figure, with its interval where it has one."""
    names = sorted({key for row in rows for key in row
                    if key.startswith("eval/") and not key.endswith(("/low", "/high", "/n"))})  # fmt: skip
    if not names:
        return ["None were taken."]

    def cell(row: Mapping[str, Any], name: str) -> str:
        low, high = row.get(f"{name}/low"), row.get(f"{name}/high")
        interval = "" if low is None or high is None else f" ({low:.3f} - {high:.3f})"
        return "-" if row.get(name) is None else f"{row[name]:.3f}{interval}"

    shown = [name.removeprefix("eval/").replace("_", " ") for name in names]
    return [
        f"| step | {' | '.join(shown)} |", "|---" * (len(names) + 1) + "|",
        *(f"| {row.get('step', '-')} | {' | '.join(cell(row, name) for name in names)} |" for row in rows),
    ]  # fmt: skip
