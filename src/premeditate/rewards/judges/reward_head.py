"""The folder of an EditReward model: a Qwen vision-language model and, among its weights, the reward heads.

    config.json, tokenizer files, preprocessor_config.json   as `save_pretrained` writes them
    *.safetensors                  the model's weights and rm_heads.head_0.*, rm_heads.head_1.* (see below)
    premeditate.json               settings, all of them optional (see `Settings`)

A head is linear layers with ReLU between them: `rm_heads.head_I.J.weight` [out, in] and `.bias` [out], J ascending;
the published ones are J = 0, 3, 5 with hidden -> 1024 -> 16 -> 2. Head 0 judges how the instruction was followed, head
1 how good the picture looks. The two outputs are mu and log sigma.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from premeditate.errors import ModelError
from premeditate.local import load_failure, read_sidecar
from premeditate.prompts.judging import REWARD_PROMPTS

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADS = ("follow", "quality")
"""What head 0 and head 1 judge."""
TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_KEY = re.compile(r"(?:.*\.)?rm_heads\.head_(\d+)\.(\d+)\.(weight|bias)")
_SINGLE = re.compile(r"(?:.*\.)?rm_head\..*")
PUBLISHED_POSITIONS = {"qwen2_5_vl": "plain", "qwen3_vl": "mrope"}
"""How tokens were numbered in the published training, by model type. That of Qwen2.5-VL hands the decoder embeddings
without the pictures' grids, so every token, of a picture too, counts one; that of Qwen3-VL gives patches places."""


@dataclass(frozen=True)
class Settings:
    """`follow`, `quality`: the words before each head's token: text with {instruction} and {reward}, each once. By
    default this project's own; a checkpoint means what it was trained to mean only with the words of its training.
    `pixels`: to which both pictures are scaled. `positions`: "plain" counts tokens, "mrope" gives patches their places;
    by default as the model's type was trained. `max_batch`: rows per pass (a sample has two)."""

    follow: str = REWARD_PROMPTS["follow"]
    quality: str = REWARD_PROMPTS["quality"]
    token: str = TOKEN
    pixels: int = PIXELS
    positions: Literal["plain", "mrope"] | None = None
    max_batch: int = 8

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Raises `ModelError`."""
        found = read_sidecar(folder, [f.name for f in fields(cls)])
        settings = cls(**found)
        for name in HEADS:
            text = getattr(settings, name)
            for mark in ("{instruction}", "{reward}"):
                if not isinstance(text, str) or text.count(mark) != 1:
                    raise ModelError(f"{folder}: the prompt {name!r} needs {mark} once", "mend premeditate.json")
            if text.index("{reward}") < text.index("{instruction}"):
                raise ModelError(f"{folder}: the prompt {name!r} has {{reward}} before {{instruction}}",
                                 "put it behind: the head sees only what stands before it")  # fmt: skip
        for name in ("pixels", "max_batch"):
            value = getattr(settings, name)
            if type(value) is not int or value < 1:
                raise ModelError(f"{folder}: {name} is {value!r}", "give a whole number of at least 1")
        if settings.positions not in (None, "plain", "mrope"):
            raise ModelError(f"{folder}: positions is {settings.positions!r}", 'give "plain" or "mrope"')
        if not isinstance(settings.token, str) or not settings.token.strip():
            raise ModelError(f"{folder}: token is {settings.token!r}", f"give the reward token, say {TOKEN}")
        return settings

    def text(self, head: str, instruction: str) -> str:
        """The words for a head. `instruction` must be plain text; nothing in it is taken for a mark."""
        before, _, after = str(getattr(self, head)).partition("{reward}")
        return before.replace("{instruction}", instruction) + self.token + after


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder. Raises `ModelError` where there are none."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}", "give the folder of an EditReward model")
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    if pickled := next((p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES), None):
        raise ModelError(f"{folder} holds {pickled}, and reading that could run code",
                         "convert it to model.safetensors on a machine where you may trust it")  # fmt: skip
    raise ModelError(f"{folder} holds no weights (*.safetensors)", "check that the folder is complete")


def read_heads(folder: Path, hidden: int) -> list[nn.Sequential]:
    """The two reward heads, float32 on the CPU. `hidden`: the model's hidden size. Raises `ModelError`."""
    import torch
    from torch import nn

    layers: dict[int, dict[int, dict[str, Tensor]]] = {}
    single = False
    for path in weight_files(folder):
        for key, tensor in _matching(path):
            match = _KEY.fullmatch(key)
            if match is None:
                single = True
                continue
            layers.setdefault(int(match[1]), {}).setdefault(int(match[2]), {})[match[3]] = tensor.float()
    if not layers:
        what = "has one head (rm_head) for one prompt" if single else "has no reward head (rm_heads.head_0.*)"
        raise ModelError(f"{folder} {what}", "give a folder of EditReward with its two heads; a plain "
                         "vision-language model judges as viescore or digits")  # fmt: skip
    if sorted(layers) != list(range(len(HEADS))):
        raise ModelError(f"{folder} has the reward heads {sorted(layers)}", "two are needed: head_0 and head_1")
    heads = []
    for number in sorted(layers):
        modules: list[nn.Module] = []
        width = hidden
        for index in sorted(layers[number]):
            weight, bias = layers[number][index].get("weight"), layers[number][index].get("bias")
            where = f"{folder}: rm_heads.head_{number}.{index}"
            if weight is None or weight.ndim != 2 or weight.shape[1] != width:
                shape = "nothing" if weight is None else list(weight.shape)
                raise ModelError(f"{where}.weight is {shape}, not [out, {width}]", "the head is not this model's")
            if bias is not None and tuple(bias.shape) != (weight.shape[0],):
                raise ModelError(f"{where}.bias is {list(bias.shape)}, not [{weight.shape[0]}]", "the head is damaged")
            if not all(bool(torch.isfinite(t).all()) for t in (weight, bias) if t is not None):
                raise ModelError(f"{where} holds numbers that are not finite", "the checkpoint is damaged")
            linear = nn.Linear(width, weight.shape[0], bias=bias is not None)
            linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
            modules += [nn.ReLU()] * bool(modules) + [linear]
            width = weight.shape[0]
        if width != 2:
            raise ModelError(f"{folder}: head_{number} has {width} outputs", "two are needed: mu and log sigma")
        heads.append(nn.Sequential(*modules).eval())
    return heads


def _matching(path: Path) -> list[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return [(key, file.get_tensor(key)) for key in file.keys() if _KEY.fullmatch(key) or _SINGLE.fullmatch(key)]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise load_failure(str(path.parent), error) from error


def reward_token(tokenizer: Any, token: str, rows: int) -> int:
    """The id of the reward token. Where the tokenizer lacks it and the model has exactly one row more than the
    tokenizer has tokens, that row is its own (the published training appends the token so). Raises `ModelError`."""
    if token not in tokenizer.get_vocab():
        if rows != len(tokenizer) + 1:
            raise ModelError(
                f"the tokenizer does not know {token}, and the model has {rows} rows for {len(tokenizer)} tokens",
                "use the tokenizer that was saved with the reward model",
            )
        tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    number = tokenizer.convert_tokens_to_ids(token)
    if tokenizer.encode(token, add_special_tokens=False) != [number] or not 0 <= number < rows:
        raise ModelError(f"{token} is not one token of this model", "use the tokenizer saved with the reward model")
    return int(number)
