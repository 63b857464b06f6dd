"""Which label an answer in words gives, and which answers give none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premeditate.prompts.base import LABELS
from premeditate.prompts.labels import read_label
from premeditate.reasoners.base import Completion
from premeditate.rewards.checklist import read_answer, vote
from premeditate.trace import ChecklistItem

ITEM = ChecklistItem(question="Is it?", dimension="keep")


@pytest.mark.parametrize(("text", "label"), [
    ("Yes, the hat is red.", "yes"), ("**Yes**", "yes"), ("__No__", "no"), ('"no"', "no"), ("NO!\r\nIt is blue.", "no"),
    ("Yes. There is no other change.", "yes"), ("No, there is no hat", "no"), ("No. No hat is there, no.", "no"),
    ("Yes, there is no hat.", "yes"), ("Yes, no other object changed", "yes"), ("Yes - no artifacts.", "yes"),
    ("Yes, and no other object changed.", "yes"), ("Yes (no one is there)", "yes"), ("Yes, no-one is there", "yes"),
    ("Yes\nNo artifacts can be seen.", "yes"), ("No it is not", "no"), ("No because the hat is blue", "no"),
    ("Yes it is", "yes"), ("Yes definitely", "yes"), ("no\nThe yesterday sign is there.", "no"),
    ("<answer>yes</answer>", "yes"), ("<answer>\n**No**\n</answer>", "no"), ("I look. <answer>no", "no"),
    ("Yes or no? I look. <answer>no</answer>", "no"), ("<answer>no</answer> No hat. <answer>No, none.</answer>", "no"),
    ("No doubt it is green. <answer>yes</answer>", "yes"), ("<think>no</think>yes", "yes"),
])  # fmt: skip
def test_an_answer_with_one_verdict_is_read(text: str, label: str) -> None:
    assert read_label(text, LABELS) == read_label(text, LABELS[::-1]) == label
    answer = read_answer(ITEM, Completion(text))
    assert (answer.status, answer.yes) == ("scored", label == "yes")


@pytest.mark.parametrize("text", [
    "yes or no", "Yes/No", "Yes and no", "yes | no", "yes no", "Yes No maybe", "**Yes** or **no**", "Yes and no thing",
    "no, yes", "No... yes!", "Yes.\nNo.", "Yes. Wait, no, it is blue.", "No doubt: yes, it is green.", "No, yes it is",
    "No doubt it is green.", "No hat is there", "No-one is there", "Yes, the answer to that is no",
    "<answer>yes</answer> wait <answer>no</answer>", "<answer>yes/no</answer>", "<answer></answer>", "Yes. <answer>",
    "No, it is blue. <answer>yes</answer>", "<answer>yes</answer> No, it is blue.", "<answer>yes<answer>no</answer>",
    "Yesterday", "Nobody", "", "It may be.", "The answer is yes.", "<think>yes",
])  # fmt: skip
def test_an_answer_with_both_or_none_is_not(text: str) -> None:
    assert read_label(text, LABELS) is read_label(text, LABELS[::-1]) is None
    answer = read_answer(ITEM, Completion(text))
    assert answer.status == "unparsable" and answer.yes is None
    assert vote(ITEM, [Completion(text), Completion(text), Completion("yes")]).status == "unparsable"


def test_labels_of_any_kind() -> None:
    sizes = ("small", "large", "large but thin")
    assert read_label("Large but thin.", sizes) == "large but thin" and read_label("LARGE", sizes) == "large"
    assert read_label("Large, the small one is gone", sizes) == "large" and read_label("small or large", sizes) is None
    assert read_label("No", ("Yes", "No")) == "No" and read_label("a", ("A", "a")) == "a"


PARTS = st.sampled_from(["yes", "no", "Yes", " ", ", ", ".", "\n", "<answer>", "</answer>", "hat", "it", "or", "/"])


@settings(max_examples=200, deadline=None)
@given(st.lists(PARTS | st.text(max_size=5), max_size=12))
def test_any_text_is_read_or_not(parts: list[str]) -> None:
    text = "".join(parts)
    label = read_label(text, LABELS)
    assert label is None or label in text.casefold()
    assert label == read_label(text, LABELS[::-1])


def test_hostile_text_is_read_in_time() -> None:
    for unit in ("<answer>", "no_", "yes ", "no*", "* ", "yes\"'", "</answer>no "):
        assert read_label(unit * 30_000, LABELS) in ("yes", "no", None)
