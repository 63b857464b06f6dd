"""How a judge that is trained writes, while it is sampled from and wherever it is used afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from premeditate.reasoners.transformers import vision_tokens


def plain(network: Any, tokenizer: Any) -> Any:
    """The settings of generation under which `network` says what its logits say (transformers' `GenerationConfig`): of
    its own, what begins, ends and pads a text, how long one is where nobody says, and what is never said: what it
    suppresses, and vision tokens. Others, as a penalty for repetition or a filter, would have it write from something
    else than what is trained. Without a temperature it writes greedily."""
    from transformers import GenerationConfig

    own = network.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    never = {*vision_tokens(network.config), *(own.suppress_tokens or ())} - set(listed(ends))
    pad = own.pad_token_id if own.pad_token_id is not None else tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=ends, pad_token_id=pad, suppress_tokens=sorted(never) or None,
        max_new_tokens=own.max_new_tokens,
    )  # fmt: skip


def listed(ends: int | Sequence[int]) -> list[int]:
    """The tokens that end a text: there may be one, or several."""
    return sorted({ends} if isinstance(ends, int) else set(ends))
