"""Processors of the Qwen vision-language models for pictures only: no video part, so no torchvision.

The stock processors of this family cannot be built without torchvision, because each insists on a video processor. We
never send video. Pillow does the resizing on every machine, so the model sees the same pixels everywhere. Reasoners use
them, and the image pipelines whose text encoder is one of these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

FAMILIES = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "qwen3_vl_moe": "Qwen3VLProcessor",
    "qwen3_5": "Qwen3VLProcessor",
    "qwen3_5_moe": "Qwen3VLProcessor",
}
"""`model_type` of a model's config -> the stock processor that is cut down."""
TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


@cache
def image_only(name: str) -> Any:
    """The stock processor class of that name with an `__init__` that takes no video processor."""
    import transformers

    stock = getattr(transformers, name)

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        # transformers reads the parts of a processor off this signature.
        for attribute, default in TOKENS.items():
            token = getattr(tokenizer, attribute, None) or default
            setattr(self, attribute, token)
            setattr(self, attribute + "_id", tokenizer.convert_tokens_to_ids(token))
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @contextmanager
    def pixels_once(self: Any) -> Iterator[None]:
        """Inside, a picture *object* that occurs several times gives its pixels once, at its first place; the text
        still has a placeholder for each. One thread at a time."""
        self._once = True
        try:
            yield
        finally:
            self._once = False

    def _process_images(self: Any, images: Any, **kwargs: Any) -> Any:
        if not getattr(self, "_once", False):
            return stock._process_images(self, images, **kwargs)
        flat = transformers.image_utils.make_flat_list_of_images(images)
        unique = list({id(image): image for image in flat}.values())
        place = {id(image): i for i, image in enumerate(unique)}
        processed = self.image_processor(unique, **kwargs)
        texts = [self.replace_image_token(processed, image_idx=place[id(image)], **kwargs) for image in flat]
        return processed, texts

    body = {"__init__": __init__, "pixels_once": pixels_once, "_process_images": _process_images}
    # Named after the stock class in full: a pipeline that is saved with it names a class that everybody has.
    return type(stock)(stock.__name__, (stock,), {**body, "__module__": "transformers"})


def load_processor(spec: str, name: str, **hub: Any) -> Any:
    """The processor in a folder or hub repository, as the image-only kind of the stock class `name`, which is one of
    the values of `FAMILIES`. `hub`: from_pretrained keywords."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    kind = image_only(name)
    tokenizer = AutoTokenizer.from_pretrained(spec, trust_remote_code=False, **hub)
    # Repositories keep the template with the processor, with the tokenizer, or with both.
    template = kind.get_processor_dict(spec, **hub)[0].get("chat_template") or tokenizer.chat_template
    return kind(Qwen2VLImageProcessorPil.from_pretrained(spec, **hub), tokenizer, chat_template=template)
