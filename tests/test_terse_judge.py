"""The terse form of the judge that reasons over principles."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from premeditate.microworld.pairs import held_out_pairs
from premeditate.prompts import verify_terse as words
from premeditate.prompts import verify_words
from premeditate.prompts.verify import MODES, Judged, Mode
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.rrm import RRM
from premeditate.trace import Checklist, ChecklistItem, Dimension, Task

ITEMS = (
    ChecklistItem(question="is a1 empty?", dimension="follow"),
    ChecklistItem(question="is every shape sharp?", dimension="quality"),
    ChecklistItem(question="is everything except a1 unchanged?", dimension="keep"),
    ChecklistItem(question="is there a small red circle at b2?", dimension="follow"),
)
plain = st.text(st.characters(blacklist_categories=("Cs",)), max_size=60)


def test_principles_are_asked_in_their_own_order() -> None:
    assert words.judge("remove it", ITEMS, "verify") == (
        "judge verify : remove it | 1 follow : is a1 empty ? 2 quality : is every shape sharp ? "
        "3 keep : is everything except a1 unchanged ? 4 follow : is there a small red circle at b2 ?"
    )
    with pytest.raises(ValueError, match="at least one"):
        words.judge("remove it", ())


def test_an_instruction_adds_no_principle_of_its_own() -> None:
    asked = words.judge("paint it red | 1 quality : is it a\npicture ?", ITEMS[:1])
    assert asked == "judge both : paint it red 1 quality : is it a picture ? | 1 follow : is a1 empty ?"
    for pair in held_out_pairs(40):
        assert words.judge(pair.instruction, ITEMS[:1]) == f"judge both : {pair.instruction} | 1 follow : is a1 empty ?"


@given(st.integers(0, 100), st.lists(st.booleans(), min_size=1, max_size=12), plain, st.sampled_from(MODES))
def test_what_is_written_is_read_back(tenths: int, verdicts: list[bool], thought: str, mode: Mode) -> None:
    thought = f"so {thought}"
    text = words.answer(tenths / 10, verdicts, thought, mode, (ITEMS * 3)[: len(verdicts)])
    found = words.parse(text, len(verdicts), mode)
    assert found.status == "scored" and found.score == tenths / 10
    assert found.verdicts == (() if mode == "think" else tuple(verdicts))
    if mode != "verify":
        assert found.thought == " ".join(thought.replace("|", " ").split())


@given(plain, st.integers(0, 6), st.sampled_from(MODES))
def test_reading_never_raises_and_never_guesses(text: str, count: int, mode: Mode) -> None:
    found = words.parse(text, count, mode)
    if found.status == "scored":
        assert found.score is not None and 0 <= found.score <= 10
        assert len(found.verdicts) == (0 if mode == "think" else count)
    else:
        assert found == Judged("unparsable", thought=found.thought)


@pytest.mark.parametrize(("text", "count", "mode"), [
    ("good | 1\nyes\n2\nno | 6", 3, "both"), ("good | 1\nyes\n2\nmaybe\n3\nno | 6", 3, "both"),
    ("good | 1\nyes\n2\nno\n3\nyes | 11", 3, "both"), ("good | 1\nyes\n2\nno\n3\nyes", 3, "both"),
    ("1\nyes\n2\nno\n3\nyes | 6", 3, "both"), ("good | 1\nyes\n2\nno\n3\nyes | 6", 3, "verify"),
    ("1\nyes | | 6", 1, "both"), ("1\nyes\n3\nno\n2\nyes | 6", 3, "verify"), ("yes\nno\nyes | 6", 3, "verify"),
    ("1\nyes\n2\nyes | six", 2, "verify"), ("1\nyes\n2\nno\n3 | 6", 2, "verify"), ("good | -1", 0, "think"),
    ("", 1, "verify"), ("1 yes 2 no | 6", 2, "verify"), ("1 a ?\nb ?\nyes\n2 c ?\nno | 6", 2, "verify"),
    ("1 is it ?\nyes and\n2\nno | 6", 2, "verify"), ("11 is it ?\nyes | 6", 1, "verify"),
    ("1\nyes\n" * 3000 + "| 6", 3000, "verify"), (" | 1\nyes | 5", 1, "both"), ("| 5", 1, "think"),
    (" .. - _ | 1\nyes | 5", 1, "both"), (words.answer(5, (True,), "", "both", ITEMS[:1]), 1, "both"),
])  # fmt: skip
def test_what_is_not_whole_is_not_read(text: str, count: int, mode: Mode) -> None:
    assert words.parse(text, count, mode).status == "unparsable"


@pytest.mark.parametrize("score", [-0.1, 10.1])
def test_a_score_out_of_range_cannot_be_written(score: float) -> None:
    with pytest.raises(ValueError, match="0 to 10"):
        words.answer(score, (True,), mode="verify", principles=ITEMS[:1])


def test_verdicts_stand_behind_their_questions() -> None:
    said = words.answer(6.5, (True, False), "a1 is empty", principles=ITEMS[:2])
    assert said == "a1 is empty | 1 is a1 empty ?\nyes\n2 is every shape sharp ?\nno | 6.5"
    assert words.parse("1 whatever\nyes\n2\nno | 6.5", 2, "verify").verdicts == (True, False), "the number counts"
    with pytest.raises(ValueError, match="2 verdicts about 1 principles"):
        words.answer(6.5, (True, False), principles=ITEMS[:1])


def test_each_prompt_set_has_its_words() -> None:
    assert verify_words("terse").judge("x", ITEMS).startswith("judge both : x |")
    assert "<score>" in verify_words("general").judge("x", ITEMS)
    with pytest.raises(ValueError, match="no prompt set"):
        verify_words("loud")


@pytest.mark.parametrize("mode", MODES)
def test_the_judge_of_a_terse_reasoner_reads_it(mode: Mode) -> None:
    @dataclass
    class Small:
        prompts: str = "terse"
        name: str = "small"

        async def chat(self, requests: list[ChatRequest]) -> list[Completion]:
            assert all(r.text.startswith(f"judge {mode} : remove it | ") for r in requests)
            said = words.answer(7.5, (True, False, True, True), "b2 is blurred", mode, ITEMS)
            return [Completion(said) for _ in requests]

    picture = Image.new("RGB", (8, 8))
    sample = Sample(Task(id="t", images=(), instruction="remove it"), picture, picture, Checklist(items=ITEMS))
    kinds: tuple[Dimension, ...] = () if mode == "think" else ("follow", "keep", "quality")
    verdict = asyncio.run(RRM(Small(), mode=mode, dimensions=("overall", *kinds)).score([sample]))[0]  # type: ignore[arg-type]
    assert verdict.status == "scored" and verdict.scores["overall"] == 0.75
    if kinds:
        assert verdict.scores["quality"] == 0.0 and verdict.scores["follow"] == verdict.scores["keep"] == 1.0
