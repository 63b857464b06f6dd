"""From one group's reward matrix to advantages: `f(rewards [G, D], ...) -> (advantages [G], mask [G])`.

NaN is a missing reward. mask False: the sample is not trained, and its advantage is 0. `gcpo` compares two groups, the
judgements of a preferred edit and of another one, and is no `GROUPINGS`: it takes scores [N] and [N].
"""

from collections.abc import Callable

from torch import Tensor

from premeditate.rl.grouping.gcpo import gcpo
from premeditate.rl.grouping.gdpo import gdpo
from premeditate.rl.grouping.grpo import grpo
from premeditate.rl.grouping.ucpg import ucpg
from premeditate.rl.grouping.weighted import weighted

GROUPINGS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "grpo": grpo,
    "gdpo": gdpo,
    "weighted": weighted,
    "ucpg": ucpg,
}

__all__ = ["GROUPINGS", "gcpo", "gdpo", "grpo", "ucpg", "weighted"]
