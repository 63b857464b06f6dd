"""Qwen-Image-Edit: the first model (one picture) and its successors 2509 and 2511 (several, "Plus").

The tokens of every picture that is read stand behind those of the picture that is made. A vision-language model reads
the prompt with the pictures, so that the text [L, D] belongs to the task, that of the negative prompt too, and its
padding is masked. Guidance keeps the norm of the conditional velocity.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from premeditate.training.flow.adapters.base import NEGATIVE, FlowAdapter, Grid

POSITIONS = 4096
"""The rotary table of the transformer: texts start in it behind half the longest side of the pictures."""


class QwenImageEditAdapter(FlowAdapter):
    """`text_tokens` as a number pads every text to that many tokens, those of the pictures in it included, which keeps
    shapes constant and changes no velocity."""

    pipeline_class: ClassVar[str] = "QwenImageEditPipeline"
    exact_text: ClassVar[bool] = True

    def encode_text(self, pictures: Sequence[Image.Image], prompt: str) -> dict[str, Tensor]:
        seen = self.seen(pictures)
        found = {"text": self._text(seen, prompt)}
        side = max(max(picture.size) for picture in pictures) // (self.pipeline.vae_scale_factor * 2)
        most = self.text_tokens if isinstance(self.text_tokens, int) else POSITIONS - side // 2
        if (count := len(found["text"])) > most:
            raise ValueError(
                f"the prompt and its pictures have {count} tokens, {most} are read; say it in fewer words"
                + (f", or give text_tokens={count}" if isinstance(self.text_tokens, int) else "")
            )
        if self.guided:
            found[NEGATIVE + "text"] = self._text(seen, self.negative_prompt)
        return found

    def seen(self, pictures: Sequence[Image.Image]) -> Any:
        """What the vision-language model is shown."""
        return pictures[0]

    def _text(self, seen: Any, prompt: str) -> Tensor:
        text, mask = self.pipeline.encode_prompt(image=seen, prompt=prompt, device=self.device)
        assert mask is None, "one prompt needs no padding"
        return text[0]

    def encode_image(self, picture: Image.Image) -> Tensor:
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(picture, picture.height, picture.width)
        latents = vae.encode(pixels[:, :, None].to(vae.device, vae.dtype)).latent_dist.mode()[0, :, 0]
        mean, std = self._scale(latents)
        return (latents - mean) / std

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        mean, std = self._scale(latents_BCHW)
        latents = latents_BCHW / (1.0 / std) + mean
        return self.pipeline.vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's channels: [c, 1, 1]."""
        config = self.pipeline.vae.config
        mean, std = (like.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return mean, std

    def predict(
        self, network: nn.Module, x_BNC: Tensor, timestep_B: Tensor, rows: Mapping[str, Tensor], grids: Sequence[Grid]
    ) -> Tensor:
        count, made = x_BNC.shape[:2]
        shapes = [(1, *grid) for grid in grids]
        found = network(
            hidden_states=torch.cat([x_BNC, rows["image"].to(x_BNC.dtype)], dim=1), timestep=timestep_B,
            encoder_hidden_states=rows["text"].to(x_BNC.dtype), encoder_hidden_states_mask=rows.get("text_mask"),
            img_shapes=[shapes] * count, return_dict=False,
        )[0]  # fmt: skip
        return found[:, :made]

    def guide(self, conditional: Tensor, negative: Tensor) -> Tensor:
        v = super().guide(conditional, negative)
        return v * (conditional.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))


class QwenImageEditPlusAdapter(QwenImageEditAdapter):
    """Qwen-Image-Edit-2509 and -2511: several pictures, which the vision-language model sees small."""

    pipeline_class: ClassVar[str] = "QwenImageEditPlusPipeline"

    def seen(self, pictures: Sequence[Image.Image]) -> Any:
        module = sys.modules[type(self.pipeline).__module__]
        sizes = [module.calculate_dimensions(module.CONDITION_IMAGE_SIZE, p.width / p.height) for p in pictures]
        resize = self.pipeline.image_processor.resize
        return [resize(picture, height, width) for picture, (width, height) in zip(pictures, sizes, strict=True)]
