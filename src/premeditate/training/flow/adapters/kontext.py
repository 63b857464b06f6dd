"""FLUX.1 Kontext: the tokens of the source stand behind those of the picture that is made, with 1 as their first
position; two text encoders, CLIP's pooled and T5's tokens; the guidance scale is an input of the transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from premeditate.editors.pipelines import prompt_tokens, text_limit
from premeditate.errors import ModelError
from premeditate.training.flow.adapters.base import NEGATIVE, FlowAdapter, Grid


class KontextAdapter(FlowAdapter):
    """`text_tokens`: FLUX was trained with T5's padding in sight. None pads to what `DiffusersEditor` pads to, and
    gives its pictures. A number pads to that many. "real" gives the transformer no padding at all (shorter texts of a
    batch are masked): the fastest, and still a function of the task alone, but not what the weights were trained on."""

    pipeline_class: ClassVar[str] = "FluxKontextPipeline"
    exact_text: ClassVar[bool] = False

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options)
        most = text_limit(pipeline, None)
        assert most is not None, "two tokenizers, the second with a limit"
        self._most = most
        if isinstance(self.text_tokens, int) and self.text_tokens > self._most:
            raise ModelError(
                f"text_tokens is {self.text_tokens}, the model reads {self._most}",
                f'give at most {self._most}, or "real" for no padding',
            )
        self._told = bool(pipeline.transformer.config.guidance_embeds)
        self._negative: dict[str, Tensor] = {}
        """Filled in place: copies of other sizes hold the same."""

    def check(self, images: Sequence[Image.Image], prompt: str) -> None:
        super().check(images, prompt)
        self._tokens(prompt)

    def _tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens of the prompt, and how many are read at most. Raises ValueError where it has more."""
        found = prompt_tokens(self.pipeline, prompt, self.text_tokens if isinstance(self.text_tokens, int) else None)
        assert found is not None, "two tokenizers, the second with a limit"
        count, limit = found
        if count > limit:
            mend = f"say it in fewer words, or give text_tokens={count}" if count <= self._most else "use fewer words"
            raise ValueError(f"the prompt has {count} tokens, {limit} are read; {mend}")
        return found

    def encode_text(self, pictures: Sequence[Image.Image], prompt: str) -> dict[str, Tensor]:
        return self._text(prompt)

    def _text(self, prompt: str) -> dict[str, Tensor]:
        count, limit = self._tokens(prompt)
        text, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompt, prompt_2=None, device=self.device,
            max_sequence_length=count if self.text_tokens == "real" else limit,
        )  # fmt: skip
        return {"text": text[0], "pooled": pooled[0]}

    @torch.no_grad()
    def shared(self) -> Mapping[str, Tensor]:
        if self.guided and not self._negative:
            found = self._text(self.negative_prompt)
            self._negative.update({NEGATIVE + name: part.cpu() for name, part in found.items()})
        return self._negative

    def encode_image(self, picture: Image.Image) -> Tensor:
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(picture, picture.height, picture.width)
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()[0]
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = latents_BCHW / vae.config.scaling_factor + vae.config.shift_factor
        return vae.decode(latents, return_dict=False)[0]

    def predict(
        self, network: nn.Module, x_BNC: Tensor, timestep_B: Tensor, rows: Mapping[str, Tensor], grids: Sequence[Grid]
    ) -> Tensor:
        count, made = x_BNC.shape[:2]
        hidden = torch.cat([x_BNC, rows["image"].to(x_BNC.dtype)], dim=1)
        positions = torch.cat([_positions(i, grid) for i, grid in enumerate(grids)]).to(x_BNC.device)
        options: dict[str, Any] = {}
        if (mask := rows.get("text_mask")) is not None:
            seen = torch.cat([mask, mask.new_ones(count, hidden.shape[1])], dim=1)
            options["joint_attention_kwargs"] = {"attention_mask": seen[:, None, None]}
        if self._told:
            options["guidance"] = torch.full([count], self.guidance_scale, device=x_BNC.device, dtype=torch.float32)
        text = rows["text"].to(x_BNC.dtype)
        found = network(
            hidden_states=hidden, timestep=timestep_B, encoder_hidden_states=text,
            pooled_projections=rows["pooled"].to(x_BNC.dtype), img_ids=positions,
            txt_ids=torch.zeros(text.shape[1], 3, device=x_BNC.device), return_dict=False, **options,
        )[0]  # fmt: skip
        return found[:, :made]


def _positions(index: int, grid: Grid) -> Tensor:
    """Where the tokens of picture `index` are: [rows * columns, 3], the picture, the row, the column."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([torch.full_like(rows, index), rows, columns], dim=-1).flatten(0, 1).float()
