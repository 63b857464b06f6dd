"""Addresses on one line: every line is an address or a `ModelError`, and an address survives its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premeditate.address import Address, is_address, shown
from premeditate.errors import ModelError


@pytest.mark.parametrize(("line", "said"), [
    ("", "is not an address"), ("a/b", "is not an address"), ("ftp://a", "is not an address"),
    ("VLLM+http://a", "is not an address"), ("http://", "names no host"), ("http://a,b:1", "starts with http"),
    ("http://a:x", "not an address"), ("http://a:99999", "not an address"), ("http://a:0", "names no host"),
    ("http://me:secret@a", "password"), ("http://a b", "space"), ("http://a\n", "control character"),
    ("http://a,http://a/", "given twice"), ("http://a?", "no option after"), ("http://a#", "no model after"),
    ("http://a?steps", "no value"), ("http://a?steps=1&steps=2", "given twice"), ("http://a?model=x", "after a #"),
    ("http://a?St-p=1", "not the name of an option"), ("http://a?x=%00", "no value"), ("http://[::1", "not an address"),
    ("http://a/<b>", "written as %XX"),
])  # fmt: skip
def test_lines_that_are_no_addresses(line: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        Address.parse(line)
    assert "secret" not in str(caught.value) and caught.value.mend


def test_addresses_in_full() -> None:
    line = "sglang+http://[::1]:30000/v1/,https://b.example?a=1&b=1.5&c=true&d=x+y&e=1e400#org/name:tag"
    address = Address.parse(line)
    assert address == Address(
        "sglang", ("http://[::1]:30000/v1", "https://b.example"),
        {"a": 1, "b": 1.5, "c": True, "d": "x y", "e": "1e400"}, "org/name:tag",
    )  # fmt: skip
    assert is_address("http://") and is_address(line) and not is_address("org/name") and not is_address("./http://a")


printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
values = st.one_of(
    st.integers(-(10**17), 10**17), st.booleans(), st.floats(allow_nan=False, allow_infinity=False),
    printable.filter(lambda text: not text.strip("-").replace(".", "").isdigit() and "e" not in text.lower()),
)  # fmt: skip
urls = st.builds(
    "{}://{}{}{}".format, st.sampled_from(["http", "https"]),
    st.sampled_from(["localhost", "10.0.0.1", "[::1]", "a-b.c"]),
    st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format)), st.sampled_from(["", "/v1", "/a%20b/v1"]),
)  # fmt: skip
addresses = st.builds(
    Address, st.one_of(st.none(), st.sampled_from(["openai", "vllm-omni", "x2"])),
    st.lists(urls, min_size=1, max_size=3, unique=True).map(tuple),
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).filter(lambda k: k != "model"), values,
                    max_size=3),
    st.one_of(st.none(), printable),
)  # fmt: skip


@given(addresses)
def test_an_address_survives_the_way_through_its_line(address: Address) -> None:
    again = Address.parse(str(address))
    assert again == address
    assert {k: type(v) for k, v in again.options.items()} == {k: type(v) for k, v in address.options.items()}


@given(st.one_of(
    st.text(max_size=40),
    st.text("htps:/+,?&#=%[]@.a1 \n", max_size=40).map("http://".__add__),
    st.text("abc:/?#&=%[]0159", max_size=30).map("vllm-omni+https://h".__add__),
))  # fmt: skip
def test_any_line_is_an_address_or_a_model_error(line: str) -> None:
    try:
        address = Address.parse(line)
    except ModelError:
        return
    assert Address.parse(str(address)) == address and is_address(line)


def test_a_key_is_not_shown() -> None:
    assert shown("http://a:1/v1?steps=8&key=sk-1&size=9#m") == "http://a:1/v1?steps=8&key=...&size=9#m"
    assert shown("http://a:1/v1?key=sk-1") == "http://a:1/v1?key=..." and shown("a monkey=1") == "a monkey=1"
