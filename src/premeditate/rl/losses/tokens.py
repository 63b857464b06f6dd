"""Objectives of token policies: the mean over a sequence's tokens, one number for each sequence.

    L_n  = 1/T_n sum_t max(-A_n rho_nt, -A_n clip(rho_nt, 1-e, 1+e)),   rho_nt = p(y_t) / p_old(y_t)
    KL_n = 1/T_n sum_t (q - log q - 1),                                 q = p_ref(y_t) / p(y_t)

GRPO (arXiv 2402.03300, eq. 3 and 4). The mean of L over the 2N sequences of both groups of a pair, with the advantages
of `premeditate.rl.grouping.gcpo`, is GCPO's objective (arXiv 2604.27505) with the sign of a loss. Every sequence
counts alike, however long it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from premeditate.rl.losses.clipped import Loss, clipped
from premeditate.rl.tensors import cast_up, per_sample, same_shape


def clipped_tokens(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float
) -> Loss:
    """The loss of N sequences, to be averaged over them by the caller.

    `log_probs`, `old_log_probs` [N, T]: of each sampled token. `mask` [N, T]: true (or 1) where a token counts;
    elsewhere the log-probabilities may be anything, NaN included. `advantages` [N]: each sequence's, or one number.
    Gradients flow to `log_probs` alone; with log_probs = old_log_probs the value is -A.

    Metrics as `clipped`, over a sequence's tokens: the mean `ratio` [N], the share of tokens that clipping took the
    gradient from `clip_share` [N], the mean `approx_kl` [N]; `ratio_std` [], the population standard deviation of the
    ratios of all tokens. Raises ValueError for shapes that differ, for a sequence without tokens, and for a clip range
    that is not positive.
    """
    log_probs, keep = _read(log_probs, mask, old_log_probs=old_log_probs)
    old, weight = cast_up(old_log_probs.detach(), per_sample(advantages, log_probs, "advantages"))
    log_ratio = torch.where(keep, log_probs - torch.where(keep, old.to(log_probs), 0.0), 0.0)
    values, metrics = clipped(log_ratio, weight[:, None].expand_as(log_ratio), clip_range)
    return Loss(
        _mean(values, keep),
        {name: _mean(metrics[name], keep) for name in ("ratio", "clip_share", "approx_kl")}
        | {"ratio_std": metrics["ratio"][keep].std(correction=0)},
    )


def token_kl(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    """How far each sequence's tokens are from a reference, [N], at least 0: the estimator of the formula above, whose
    mean over the policy's own tokens is KL(policy || reference). Arguments as `clipped_tokens`; gradients flow to
    `log_probs` alone. Raises ValueError as it does."""
    log_probs, keep = _read(log_probs, mask, ref_log_probs=ref_log_probs)
    (ref,) = cast_up(ref_log_probs.detach())
    log_ratio = torch.where(keep, ref.to(log_probs), 0.0) - log_probs
    return _mean(log_ratio.expm1() - log_ratio, keep)


def _read(log_probs: Tensor, mask: Tensor, **other: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of at least float32, 0 where they do not count, and the mask as bool."""
    same_shape(log_probs=log_probs, mask=mask, **other)
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs has shape {list(log_probs.shape)}; give [N, T]: N sequences of T tokens")
    keep = mask.bool()
    if not bool(keep.any(1).all()):
        raise ValueError("a sequence has no tokens that count; leave it out")
    (cast,) = cast_up(log_probs)
    # Zeroed before anything is calculated: a gradient of 0 times NaN would be NaN.
    return torch.where(keep, cast, 0.0), keep


def _mean(values: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, values, 0.0).sum(1) / keep.sum(1)
