"""Sampling whose randomness belongs to the request, not to the batch.

`generate` draws all rows from one stream, so that a row's text depends on its neighbours. Here each row has its own
generator, and the draw is an argmax: argmax(logits / T + Gumbel noise) is an exact sample of softmax(logits / T)
(Gumbel-max trick). The model's greedy decoding then does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class SeededNoise:
    """A transformers logits processor, the last in its list: scores [B, V] -> scores whose argmax is the next token.

    `temperatures` [B], 0: greedy, that row is left alone. `seeds` [B]. `banned`: token ids that are never said; a
    sampled image token, for one, would have no picture behind it.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], banned: Sequence[int] = ()) -> None:
        import torch

        self.temperatures, self.banned = list(temperatures), list(banned)
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        scores = scores.float().clone()
        scores[:, self.banned] = -torch.inf
        for row, (temperature, generator) in enumerate(zip(self.temperatures, self.generators, strict=True)):
            if temperature > 0:
                noise = -torch.empty(scores.shape[-1]).exponential_(generator=generator).log()
                scores[row] = scores[row] / temperature + noise.to(scores.device)
        return scores
