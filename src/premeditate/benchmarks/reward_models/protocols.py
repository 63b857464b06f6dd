"""The counts of published benchmarks, from what a judge said.

EditReward-Bench of TIGER-Lab: groups of K = 2, 3 and 4 edits, a pair for every two of them; a group is right where all
its pairs are; the overall figure is right groups / all groups (484 in all). With scores, K = 2 has three labels and a
threshold for ties, K = 3 and 4 want the strict order.

EditReward-Bench of EditScore (another set of the same name): is the winner's score strictly higher; per task and
dimension, then the plain mean over the tasks.

GenAI-Bench, image editing: four labels, exact match.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from premeditate.benchmarks.reward_models.pairwise import Accuracy, accuracy, halves, label, tie_threshold
from premeditate.datasets.preferences import VOTES as VOTES
from premeditate.datasets.preferences import Four as Four
from premeditate.datasets.preferences import Preference
from premeditate.stats import Z95, Rate

Missing = Literal["leave", "wrong"]


# -- TIGER-Lab's -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Right groups of those that count, per K and overall; `left`: groups that left because an answer is missing."""

    by_size: dict[int, Rate]
    left: int
    pairs: Accuracy

    @property
    def overall(self) -> Rate:
        return Rate(sum(r.k for r in self.by_size.values()), sum(r.n for r in self.by_size.values()))

    def to_json(self) -> dict[str, Any]:
        sizes = {f"K={size}": rate.to_json() for size, rate in self.by_size.items()}
        return {**sizes, "overall": self.overall.to_json(), "left": self.left, "pairs": self.pairs.to_json()}


def tiger(
    groups: Sequence[str], said: Sequence[Preference | None], truth: Sequence[Preference], missing: Missing = "leave",
    sizes: Mapping[str, int] | None = None,
) -> Groups:  # fmt: skip
    """One entry per pair; `groups` names its group. `missing`: a group without one of its answers leaves, or is wrong
    (the published overall figures divide by all groups). `sizes`: K of every group; one that has fewer pairs than K
    edits have, K (K - 1) / 2, or none at all, lacks answers. Raises ValueError for a group of too many pairs, and
    without `sizes` for one of 2, 4, 5, ... pairs."""
    members: dict[str, list[int]] = {group: [] for group in sizes or ()}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    found: dict[int, list[bool]] = {}
    left = 0
    for group, places in members.items():
        size = (sizes or {}).get(group) or round((1 + math.sqrt(1 + 8 * len(places))) / 2)
        pairs = size * (size - 1) // 2
        if len(places) > pairs or (sizes is None and len(places) < pairs):
            raise ValueError(f"the group {group} has {len(places)} pairs; give every two of its edits once")
        outcomes = found.setdefault(size, [])
        if missing == "leave" and (len(places) < pairs or any(said[i] is None for i in places)):
            left += 1
        else:
            outcomes.append(len(places) == pairs and all(said[i] == truth[i] for i in places))
    return Groups({size: Rate.of(found[size]) for size in sorted(found)}, left, accuracy(said, truth, "label"))


def tiger_labels(
    groups: Sequence[str], scores: Sequence[tuple[float | None, float | None]], eps: float = 0.0,
    sizes: Mapping[str, int] | None = None,
) -> list[Preference | None]:  # fmt: skip
    """What a pair's two scores say there: `eps` in groups of two edits (by `sizes`, else of one pair), the strict order
    in larger ones."""
    count = dict.fromkeys(groups, 0)
    for group in groups:
        count[group] += 1
    two = {group for group, n in count.items() if (n == 1 if sizes is None else sizes[group] == 2)}
    return [label(a, b, eps if g in two else 0.0) for g, (a, b) in zip(groups, scores, strict=True)]


# -- EditScore's -------------------------------------------------------------------------------------------------------

TASKS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject_add", "subject_remove", "subject_replace"),
    "appearance": ("color_alter", "material_alter", "style_change", "tone_transfer"),
    "scene": ("background_change", "extract"),
    "advanced": ("ps_human", "text_change", "motion_change", "compose"),
}
"""The 13 tasks by group, as `task_name` writes them."""


def task_name(task: str) -> str:
    """One way of writing for "subject-add", "Subject_Add" and "subject add"."""
    return re.sub(r"[\s-]+", "_", task.strip().lower())


@dataclass(frozen=True)
class Tasks:
    """One dimension: each task's accuracy, ties wrong. `mean`: plain, over the tasks that have one."""

    tasks: dict[str, Accuracy]

    @property
    def mean(self) -> float | None:
        return _mean(self.tasks.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, normal: the tasks' variances (Agresti-Coull's, which are above 0 for 0 and n of n) added up."""
        parts = [a for a in self.tasks.values() if a.n]
        if not parts or self.mean is None:
            return None
        variance = 0.0
        for part in parts:
            n = part.n + Z95**2
            p = (part.right + Z95**2 / 2) / n
            variance += p * (1 - p) / n
        half = Z95 * math.sqrt(variance) / len(parts)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    @property
    def groups(self) -> dict[str, float | None]:
        """The plain mean of each group's tasks, None without any."""
        return {g: _mean(self.tasks[t] for t in names if t in self.tasks) for g, names in TASKS.items()}

    @property
    def pairs(self) -> Accuracy:
        """All pairs alike, whatever their task."""
        every = self.tasks.values()
        return Accuracy(
            sum(a.right for a in every), sum(a.n for a in every), sum(a.asked for a in every),
            sum(a.missing for a in every), sum(a.ties for a in every),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        return {"mean": self.mean, "low": low, "high": high, "groups": self.groups, "pairs": self.pairs.to_json(),
                "tasks": {task: found.to_json() for task, found in self.tasks.items()}}  # fmt: skip


def editscore(
    tasks: Sequence[str], dimensions: Sequence[str], said: Sequence[Preference | None], truth: Sequence[Preference]
) -> dict[str, Tasks]:
    """Per dimension ("prompt_following", "consistency", "overall"). One entry per pair."""
    cells: dict[str, dict[str, list[int]]] = {}
    for i, (task, dimension) in enumerate(zip(tasks, dimensions, strict=True)):
        cells.setdefault(dimension, {}).setdefault(task_name(task), []).append(i)
    return {
        dimension: Tasks(
            {t: accuracy([said[i] for i in at], [truth[i] for i in at], "wrong") for t, at in sorted(by_task.items())}
        )
        for dimension, by_task in cells.items()
    }


def _mean(parts: Any) -> float | None:
    values = [a.value for a in parts if a.value is not None]
    return sum(values) / len(values) if values else None


# -- GenAI-Bench's -----------------------------------------------------------------------------------------------------

FOUR: tuple[Four, ...] = ("A>B", "B>A", "A=B=Good", "A=B=Bad")
THREE: Mapping[Four, Preference] = {"A>B": "first", "B>A": "second", "A=B=Good": "tie", "A=B=Bad": "tie"}
_FOUR = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")


def four_label(text: str | None) -> Four | None:
    """The label that a judge's words hold in double square brackets; None where there is none, or several that differ:
    nothing is guessed. A bare label is one too."""
    if text is None:
        return None
    bare = text.strip()
    found = {re.sub(r"\s+", "", part) for part in _FOUR.findall(text)} or {re.sub(r"\s+", "", bare)}
    known = [one for one in FOUR if one in found]
    return known[0] if len(known) == 1 and len(found) == 1 else None


def four_of_scores(first: float | None, second: float | None, *, good: float, eps: float = 0.0) -> Four | None:
    """The label that two scores amount to: a tie is good where their mean is at least `good`."""
    said = label(first, second, eps)
    if said is None or first is None or second is None:
        return None
    if said == "tie":
        return "A=B=Good" if (first + second) / 2 >= good else "A=B=Bad"
    return "A>B" if said == "first" else "B>A"


def good_threshold(means: Sequence[float], good: Sequence[bool]) -> float:
    """The mean score from which on ties are good, the smallest of those with most right; 0.5 where there is no tie."""
    if not means:
        return 0.5
    options = [*sorted(set(means)), math.nextafter(max(means), math.inf)]
    told = list(zip(means, good, strict=True))
    return max(options, key=lambda one: (sum((mean >= one) == g for mean, g in told), -one))


def four_calibrated(
    scores: Sequence[tuple[float | None, float | None]], truth: Sequence[Four], *, ties: bool = True, seed: int = 0
) -> tuple[list[Four | None], tuple[tuple[float, float], tuple[float, float]]]:
    """`four_of_scores` with (`eps`, `good`) that were found on the other half of the pairs, and the two of them.
    `ties`: False leaves `eps` at 0."""
    said: list[Four | None] = [None] * len(truth)
    parts, found = halves(len(truth), seed), []
    for half, other in (parts, parts[::-1]):
        known = [(a, b, truth[i]) for i in other for a, b in [scores[i]] if label(a, b) is not None]
        eps = tie_threshold([a - b for a, b, _ in known], [THREE[t] for *_, t in known]) if ties else 0.0  # type: ignore[operator]
        tied = [((a + b) / 2, t == "A=B=Good") for a, b, t in known if THREE[t] == "tie"]  # type: ignore[operator]
        found.append((eps, good_threshold([mean for mean, _ in tied], [good for _, good in tied])))
        for i in half:
            said[i] = four_of_scores(*scores[i], good=found[-1][1], eps=eps)
    return said, (found[0], found[1])


def genai(said: Sequence[Four | None], truth: Sequence[Four], missing: Missing = "leave") -> Accuracy:
    """Exact matches. `missing`: an answer that is none leaves the count, or is wrong (as published: of 919)."""
    known = [(s, t) for s, t in zip(said, truth, strict=True) if s is not None]
    absent = len(truth) - len(known)
    right = sum(s == t for s, t in known)
    ties = sum(s in ("A=B=Good", "A=B=Bad") for s, _ in known)
    return Accuracy(right, len(truth) if missing == "wrong" else len(known), len(truth), absent, ties)
