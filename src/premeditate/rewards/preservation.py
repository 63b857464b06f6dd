"""What an edit left alone, measured: PSNR and SSIM between source and edit outside the changed region.

    psnr = clip(10 log10(255^2 / MSE), 0, 50) / 50      MSE over the RGB values (0-255) of the pixels outside
    ssim = clip(mean of SSIM, 0, 1)                     over the 11x11 windows that lie wholly outside

50 dB is a root mean square error of 0.8 of the 255 levels; nearer pictures are not told apart. SSIM is that of Wang,
Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity" (2004): luma,
Gaussian windows of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, no padding, no downsampling.

The changed region is the task's `meta["changed_boxes"]`: [left, top, right, bottom] each, in 0-1 of the width and
height, rounded outwards to whole pixels; [] says that all of the picture was to stay. Without it the region is
estimated, from the largest differences: see `estimate`, and its limits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from premeditate.rewards.base import Sample
from premeditate.trace import Verdict

WINDOW, SIGMA = 11, 1.5
K1, K2, PEAK = 0.01, 0.03, 255.0
FULL_DB = 50.0
BLUR = 0.02
"""Standard deviation of the blur before the region is estimated, as a share of the longer side."""
NOTICED = 12.0
"""Blurred difference (0-255, mean of the channels) up to which a pixel counts as unchanged."""
SHARE = 0.125
"""Of the largest blurred difference, from which a pixel counts as changed: half of what the blur leaves of it at the
corner of a rectangle."""
CONSENSUS = 3
"""Samples of a group from which their median says what the change is."""
_LUMA = np.array([0.299, 0.587, 0.114])


class Preservation:
    """psnr and ssim, each in [0, 1]; 1 for what was not touched at all.

    Where there is too little outside for a window, ssim is absent; where nothing is outside, or the edit has another
    size than the source, the sample is "unavailable". `limit`: the share of a picture that an estimated region covers
    at most.
    """

    name = "preservation"
    dimensions: tuple[str, ...] = ("psnr", "ssim")
    groupwise = True  # the region is estimated from all edits of a task together

    def __init__(self, limit: float = 0.5) -> None:
        if not 0 < limit < 1:
            raise ValueError(f"limit is a share between 0 and 1, not {limit}")
        self.limit = limit

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample, in order."""
        regions = self._regions(samples)
        return [self._judge(sample, region) for sample, region in zip(samples, regions, strict=True)]

    def _judge(self, sample: Sample, region: np.ndarray | str) -> Verdict:
        start = time.perf_counter()
        scores: dict[str, float] = {}
        reason = region if isinstance(region, str) else ""
        if not isinstance(region, str):
            source, edit = _pixels(sample.source), _pixels(sample.edit)
            scores = preserved(source, edit, region)
            if not scores:
                reason = "the changed region covers the whole picture"
            elif "ssim" not in scores:
                reason = f"no {WINDOW}x{WINDOW} window lies outside the changed region"
        return Verdict(status="unavailable" if reason else "scored", scores=scores, verifier=self.name, reason=reason,
                       seconds=time.perf_counter() - start)  # fmt: skip

    def _regions(self, samples: Sequence[Sample]) -> list[np.ndarray | str]:
        """The changed region of each sample, or why there is none."""
        found: list[np.ndarray | str | None] = [_told(sample) for sample in samples]
        together: dict[Any, list[int]] = {}
        for i, sample in enumerate(samples):
            if found[i] is None:
                together.setdefault((sample.group, sample.edit.size) if sample.group else i, []).append(i)
        for members in together.values():
            differences = np.stack([difference(samples[i].source, samples[i].edit) for i in members])
            shared = np.median(differences, axis=0) if len(members) >= CONSENSUS else None
            for i, own in zip(members, differences, strict=True):
                found[i] = estimate(own if shared is None else shared, self.limit)
        return [region for region in found if region is not None]


def preserved(source: np.ndarray, edit: np.ndarray, region: np.ndarray) -> dict[str, float]:
    """psnr and ssim in [0, 1] of two pictures [H, W, 3] (0-255) where `region` (bool [H, W]) is false: what can be
    measured there."""
    outside = ~region
    if not outside.any():
        return {}
    error = float(((source - edit)[outside] ** 2).mean())
    scores = {"psnr": 1.0 if error == 0 else min(1.0, max(0.0, 10 * math.log10(PEAK**2 / error) / FULL_DB))}
    clear = _windows_within(outside)
    if clear.any():
        scores["ssim"] = min(1.0, max(0.0, float(ssim(source @ _LUMA, edit @ _LUMA)[clear].mean())))
    return scores


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The SSIM of every whole 11x11 window of two grey pictures [H, W] in 0-255 -> [H - 10, W - 10], in [-1, 1]
    (Wang et al. 2004, equation 13). Pictures smaller than a window give an empty array."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    cov = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    found: np.ndarray = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return found


def difference(source: Image.Image, edit: Image.Image) -> np.ndarray:
    """|edit - source| in 0-255, mean of the channels, blurred: float [H, W]."""
    gap = np.abs(_pixels(edit) - _pixels(source)).mean(-1)
    sigma = max(0.5, BLUR * max(gap.shape))
    radius = math.ceil(3 * sigma)
    kernel = _gaussian(2 * radius + 1, sigma)
    return _convolved(np.pad(gap, radius, mode="edge"), kernel)


def estimate(differences: np.ndarray, limit: float = 0.5) -> np.ndarray:
    """The region (bool [H, W]) that was probably meant to change: pixels whose blurred difference is above SHARE of
    the largest and above what is noticed, at most `limit` of the picture.

    Limits: a change that is faint beside a stronger one counts as damage; damage as strong as the change, in the same
    place in most edits of a group, or in an edit that stands alone, counts as change; a picture that changed all over
    is measured on the half that changed less. Where the region matters, say it with `changed_boxes`.
    """
    threshold = max(NOTICED, SHARE * differences.max(), float(np.quantile(differences, 1 - limit)))
    found: np.ndarray = differences > threshold
    return found


def _told(sample: Sample) -> np.ndarray | str | None:
    """The region that the task's `changed_boxes` give, why the sample cannot be measured, or None: to be estimated."""
    if sample.edit.size != sample.source.size:
        return f"the edit is {_size(sample.edit)} pixels and the source {_size(sample.source)}"
    if (boxes := sample.task.meta.get("changed_boxes")) is None:
        return None
    width, height = sample.source.size
    region = np.zeros((height, width), dtype=bool)
    if not isinstance(boxes, list | tuple):
        return "changed_boxes is no list of [left, top, right, bottom] in 0-1"
    for box in boxes:
        try:
            left, top, right, bottom = map(float, box)
        except (TypeError, ValueError):
            return f"{str(box)[:80]} in changed_boxes is not [left, top, right, bottom]"
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            return f"{str(box)[:80]} in changed_boxes is not [left, top, right, bottom] in 0-1"
        # A hair of rounding (1/3 of 300 is not 100) must not take in another row of pixels.
        region[
            math.floor(top * height + 1e-6) : math.ceil(bottom * height - 1e-6),
            math.floor(left * width + 1e-6) : math.ceil(right * width - 1e-6),
        ] = True
    return region


def _windows_within(outside: np.ndarray) -> np.ndarray:
    """bool [H - 10, W - 10]: whether all of the window is `outside`. Counted by a summed-area table."""
    height, width = outside.shape
    if min(height, width) < WINDOW:
        return np.zeros((0, 0), dtype=bool)
    table = np.zeros((height + 1, width + 1), dtype=np.int64)
    table[1:, 1:] = outside.cumsum(0).cumsum(1)
    count = table[WINDOW:, WINDOW:] - table[:-WINDOW, WINDOW:] - table[WINDOW:, :-WINDOW] + table[:-WINDOW, :-WINDOW]
    full: np.ndarray = count == WINDOW**2
    return full


def _blurred(x: np.ndarray) -> np.ndarray:
    return _convolved(x, _gaussian(WINDOW, SIGMA))


def _gaussian(length: int, sigma: float) -> np.ndarray:
    """Normalised, so that the outer product with itself is the normalised two-dimensional one."""
    at = np.arange(length) - (length - 1) / 2
    weights: np.ndarray = np.exp(-(at**2) / (2 * sigma**2))
    return weights / weights.sum()


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[H, W] with a symmetric kernel [k] along both axes, without padding -> [H - k + 1, W - k + 1]."""
    for _ in range(2):
        length = max(0, len(x) - len(kernel) + 1)
        total = np.zeros((length, x.shape[1]))
        for k, weight in enumerate(kernel):
            total += weight * x[k : k + length]
        x = np.ascontiguousarray(total.T)
    return x


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
