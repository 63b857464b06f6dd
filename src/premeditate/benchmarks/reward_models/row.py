"""One pair of edits, and what a judge said about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from premeditate.benchmarks.reward_models.protocols import Four
from premeditate.datasets.preferences import Preference


@dataclass(frozen=True)
class Row:
    """One pair and what was said. `scores` [R][2]: of the first and second edit in each repeat, None where there is
    none; in every other repeat the second was shown first. `edits`: numbers of the two edits; one that is in several
    pairs was judged once, and has the same number in all of them. `names`: as the pair has them. `task`: a digest of
    instruction and source. `four`: GenAI-Bench's label, where people gave one."""

    id: str
    kind: str
    dimension: str
    group: str
    preference: Preference
    scores: tuple[tuple[float | None, float | None], ...]
    statuses: tuple[tuple[str, str], ...]
    edits: tuple[int, int]
    names: tuple[str, str] = ("", "")
    task: str = ""
    four: Four | None = None

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Of the repeats that have a score."""
        one, other = ([s[k] for s in self.scores] for k in (0, 1))
        return _mean(one), _mean(other)

    @property
    def difference(self) -> float | None:
        first, second = self.means
        return None if first is None or second is None else first - second


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
