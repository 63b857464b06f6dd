"""How endpoints are written on one line:

    [dialect+]http(s)://host[:port][/path][,http(s)://...][?option=value&...][#model]

    http://10.0.0.5:8000/v1
    vllm-omni+http://a:8000/v1,http://b:8000/v1?steps=8&guidance_scale=1#Qwen/Qwen-Image-Edit-2511

Several addresses serve one model; dialect, options and model hold for all of them. A comma, "?", "#", "&" or a space
inside a value is percent-encoded. This module knows neither the dialects nor the options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from premeditate.errors import ModelError

Value = int | float | str | bool
FORM = "write [dialect+]http://host:port/path[,http://...][?option=value][#model]"
_START = re.compile(r"(?:([a-z][a-z0-9.-]*)\+)?(?=https?://)")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_OPTION = re.compile(r"[a-z][a-z0-9_]*")
_INT = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,3})?", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """`urls`: without a slash at the end, each once. `options`: a value that reads as a number, true or false is one.
    `dialect`, `model`: None where the line does not say."""

    dialect: str | None
    urls: tuple[str, ...]
    options: dict[str, Value] = field(default_factory=dict)
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises `ModelError`, and nothing else, for a line of another form."""
        if not text.isprintable() or " " in text:
            raise ModelError("the address holds a space or a control character", "write it as %20, or leave it out")
        rest, hash_, fragment = text.partition("#")
        rest, asks, query = rest.partition("?")
        start = _START.match(rest)
        if start is None:
            raise ModelError(f"{_short(text)} is not an address", FORM)
        urls = tuple(_url(url) for url in re.split(r",(?=https?://)", rest[start.end() :]))
        if twice := next((url for i, url in enumerate(urls) if url in urls[:i]), None):
            raise ModelError(f"{twice} is given twice", "give each address once; a server's capacity is an option")
        model = unquote(fragment)
        if hash_ and not (model.strip() and model.isprintable()):
            raise ModelError("the address names no model after #", "write the model's name, or leave the # out")
        return cls(start[1], urls, _options(query) if asks else {}, model if hash_ else None)

    def settings(self, options: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        """What an adapter is told: the line's model and options, and before these `options`, of which None says
        nothing. `texts`: options that are text, even where their value looks like a number."""
        given = {option: value for option, value in options.items() if value is not None}
        found: dict[str, Any] = {"model": self.model, **self.options, **given}
        return {key: str(v) if key in texts and isinstance(v, int | float) else v for key, v in found.items()}

    def __str__(self) -> str:
        """The line that parses to this."""
        line = (f"{self.dialect}+" if self.dialect else "") + ",".join(self.urls)
        if self.options:
            line += "?" + urlencode({key: _written(value) for key, value in self.options.items()}, quote_via=quote)
        return line if self.model is None else f"{line}#{quote(self.model, safe='/:@')}"


def is_address(text: str) -> bool:
    """Whether `text` means to be an address, right or wrong."""
    return _START.match(text) is not None


def shown(text: str) -> str:
    """`text` for people: without a key that stands in it."""
    return re.sub(r"(?<=[?&]key=)[^&#]*", "...", text)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ModelError(f"{_short(url)} is not an address ({error})", FORM) from None
    if "@" in parts.netloc:  # not repeated here: it may be a password
        raise ModelError("the address holds a user or password", "leave it out, and give the key by the environment")
    name, colon, _ = parts.netloc.rpartition(":") if port is not None else (parts.netloc, "", "")
    if not _NAME.fullmatch(name) or (colon and port == 0):
        many = "; each of several addresses starts with http:// or https://" if "," in parts.netloc else ""
        raise ModelError(f"{_short(url)} names no host{many}", FORM)
    if not _PATH.fullmatch(parts.path):
        raise ModelError(f"{_short(url)} has a path with characters that must be written as %XX", FORM)
    return url.rstrip("/")


def _options(query: str) -> dict[str, Value]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise ModelError("the address has more than 100 options", "leave some out") from None
    if not pairs:
        raise ModelError("the address has no option after ?", "write ?steps=8, or leave the ? out")
    options: dict[str, Value] = {}
    for key, value in pairs:
        if not _OPTION.fullmatch(key):
            raise ModelError(f"{_short(key)!r} is not the name of an option", "write ?steps=8&guidance_scale=1")
        if key in options:
            raise ModelError(f"the option {_short(key)} is given twice", "give it once")
        if key == "model":
            raise ModelError("the model is given as an option", "write it after a #, at the end of the address")
        if not value or not value.isprintable():
            raise ModelError(
                f"the option {_short(key)} has no value that can be read", f"write {_short(key)}=something"
            )
        options[key] = _value(value)
    return options


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
