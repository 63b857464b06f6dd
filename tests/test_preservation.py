"""PSNR and SSIM outside the changed region, against the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from premeditate.rewards.preservation import Preservation, preserved, ssim
from support.rewards import changed, noise, sample, score

PICTURE = noise(48, 40)


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, window by window, from the definition: weighted mean, variance and covariance."""
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = np.empty((x.shape[0] - 10, x.shape[1] - 10))
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mu_a, mu_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mu_a) ** 2).sum(), (weights * (b - mu_b) ** 2).sum()
            cov = (weights * (a - mu_a) * (b - mu_b)).sum()
            found[i, j] = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return found


def luma(image: Image.Image) -> np.ndarray:
    red, green, blue = np.asarray(image, dtype=float).transpose(2, 0, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def measured_by_hand(source: Image.Image, edit: Image.Image, region: np.ndarray) -> dict[str, float]:
    a, b = np.asarray(source, dtype=float), np.asarray(edit, dtype=float)
    errors = [(a[i, j, c] - b[i, j, c]) ** 2 for i, j in np.argwhere(~region) for c in range(3)]
    whole = ssim_by_hand(luma(source), luma(edit))
    windows = [whole[i, j] for i, j in np.ndindex(whole.shape) if not region[i : i + 11, j : j + 11].any()]
    psnr = 10 * math.log10(255**2 / (sum(errors) / len(errors)))
    return {"psnr": min(1, max(0, psnr / 50)), "ssim": min(1, max(0, sum(windows) / len(windows)))}


@pytest.mark.parametrize("amount", [2, 20, 120])
def test_ssim_is_that_of_the_paper(amount: int) -> None:
    x, y = luma(PICTURE), luma(changed(PICTURE, amount))
    np.testing.assert_allclose(ssim(x, y), ssim_by_hand(x, y), atol=1e-9)
    np.testing.assert_allclose(ssim(x, x), 1, atol=1e-12)
    assert ssim(x[:10], y[:10]).size == 0


def test_only_what_lies_outside_the_told_boxes_is_measured() -> None:
    edit = changed(changed(PICTURE, 6), 200, box=(5, 4, 20, 17))
    boxes = [[5 / 48, 4 / 40, 20 / 48, 17 / 40]]
    region = np.zeros((40, 48), dtype=bool)
    region[4:17, 5:20] = True
    (told,) = score(Preservation(), sample(PICTURE, edit, changed_boxes=boxes))
    assert told.scores == pytest.approx(measured_by_hand(PICTURE, edit, region), abs=1e-9)
    (all_of_it,) = score(Preservation(), sample(PICTURE, edit, changed_boxes=[]))
    assert all_of_it.scores == pytest.approx(measured_by_hand(PICTURE, edit, region & False), abs=1e-9)
    assert all_of_it.scores["psnr"] < told.scores["psnr"] - 0.2
    # Uniform noise of +-6 has a variance of 12, and 1/12 of rounding.
    assert told.scores["psnr"] * 50 == pytest.approx(10 * math.log10(255**2 / (12 + 1 / 12)), abs=0.3)


def test_boxes_are_rounded_outwards_to_whole_pixels() -> None:
    source = Image.new("RGB", (30, 30), "gray")
    edit = source.copy()
    edit.paste("red", (10, 10, 20, 20))
    thirds = [[1 / 3, 1 / 3, 2 / 3, 2 / 3]]
    (exact,) = score(Preservation(), sample(source, edit, changed_boxes=thirds))
    assert exact.scores == {"psnr": 1.0} and exact.status == "unavailable"  # no window of 11 beside a box of 10..20
    (off,) = score(Preservation(), sample(source, edit, changed_boxes=[[0.34, 0.34, 0.66, 0.66]]))
    assert off.scores["psnr"] == 1.0
    (small,) = score(Preservation(), sample(source, edit, changed_boxes=[[0.37, 1 / 3, 2 / 3, 2 / 3]]))
    assert small.scores["psnr"] < 1.0


def test_identical_pictures_score_1_and_unlike_ones_near_0() -> None:
    for boxes in ({}, {"changed_boxes": []}, {"changed_boxes": [[0, 0, 0.3, 0.3]]}):
        (same,) = score(Preservation(), sample(PICTURE, PICTURE.copy(), **boxes))
        assert same.scores == pytest.approx({"psnr": 1.0, "ssim": 1.0}) and same.status == "scored"
    black, white = Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), "white")
    (unlike,) = score(Preservation(), sample(black, white))
    assert unlike.scores["psnr"] == 0 and unlike.scores["ssim"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("edit", "meta", "said"),
    [
        (noise(47, 40), {}, "the edit is 47x40 pixels and the source 48x40"),
        (PICTURE, {"changed_boxes": "all"}, "no list"),
        (PICTURE, {"changed_boxes": [[0, 0, 1]]}, "is not [left, top, right, bottom]"),
        (PICTURE, {"changed_boxes": [[0, 0, "x", 1]]}, "is not [left, top, right, bottom]"),
        (PICTURE, {"changed_boxes": [[0, 0, 48, 40]]}, "in 0-1"),
        (PICTURE, {"changed_boxes": [[0.5, 0, 0.5, 1]]}, "in 0-1"),
        (PICTURE, {"changed_boxes": [[0, 0, math.nan, 1]]}, "in 0-1"),
        (PICTURE, {"changed_boxes": [[0, 0, 1, 1]]}, "covers the whole picture"),
    ],
)
def test_what_cannot_be_measured_is_missing_with_the_reason(edit: Image.Image, meta: dict[str, Any], said: str) -> None:
    good, bad = score(Preservation(), sample(PICTURE, PICTURE), sample(PICTURE, edit, **meta))
    assert bad.status == "unavailable" and bad.scores == {} and said in bad.reason
    assert good.status == "scored"


def test_a_picture_too_small_for_a_window_has_psnr_only() -> None:
    tiny = noise(10, 30)
    (verdict,) = score(Preservation(), sample(tiny, tiny))
    assert verdict.scores == {"psnr": 1.0} and verdict.status == "unavailable" and "window" in verdict.reason


def test_the_changed_region_is_estimated_where_nobody_tells_it() -> None:
    """A strong change in one corner and faint noise elsewhere: what is measured is the noise."""
    source = noise(96, 80)
    edit = changed(changed(source, 4), 0)
    edit.paste("black", (8, 8, 40, 40))
    (verdict,) = score(Preservation(), sample(source, edit))
    clean = 10 * math.log10(255**2 / (16 / 3 + 1 / 12)) / 50
    assert verdict.scores["psnr"] == pytest.approx(clean, abs=0.03)
    whole = preserved(np.asarray(source, dtype=float), np.asarray(edit, dtype=float), np.zeros((80, 96), dtype=bool))
    assert whole["psnr"] < clean - 0.3


def test_the_edits_of_a_group_tell_a_change_from_one_edit_s_damage() -> None:
    source = noise(96, 80)
    edits = []
    for seed in range(4):
        edit = changed(source, 2, seed=seed)
        edit.paste("black", (8, 8, 40, 40))
        edits.append(edit)
    edits[3].paste("white", (60, 30, 90, 70))  # as strong as the change
    together = score(Preservation(), *[sample(source, e, "g") for e in edits])
    assert together[3].scores["psnr"] < min(v.scores["psnr"] for v in together[:3]) - 0.3
    alone = score(Preservation(), sample(source, edits[3]))[0]  # the documented limit
    assert alone.scores["psnr"] > together[3].scores["psnr"] + 0.3
    mixed = score(Preservation(), *[sample(source, e, f"g{k}") for k, e in enumerate(edits)])
    assert mixed[3].scores == alone.scores


def test_a_picture_that_changed_all_over_is_not_all_region() -> None:
    brighter = Image.fromarray(np.clip(np.asarray(PICTURE).astype(int) // 2 + 100, 0, 255).astype(np.uint8))
    (verdict,) = score(Preservation(), sample(PICTURE, brighter))
    assert verdict.scores["psnr"] < 0.6
    with pytest.raises(ValueError, match="between 0 and 1"):
        Preservation(limit=1.0)
