"""Editors by their addresses."""

from __future__ import annotations

from typing import Any

from premeditate.address import Address
from premeditate.editors.editthinker import EditThinkerEditor
from premeditate.editors.http import HttpEditor
from premeditate.editors.openai_images import DIALECTS, OpenAIImagesEditor
from premeditate.errors import ModelError
from premeditate.local import nearest


def open_editors(spec: str, **options: Any) -> list[HttpEditor]:
    """One editor for each address in `spec` (the form: `premeditate.address`), none of them asked anything yet.

    Dialects: editthinker, or one of `openai_images.DIALECTS` (default: auto). `options` are the adapter's; they go
    before those in `spec`, None says nothing. Raises `ModelError`.
    """
    address = Address.parse(spec)
    known = (*DIALECTS, "editthinker")
    dialect = address.dialect or "auto"
    if dialect not in known:
        raise ModelError(f"there is no editor dialect {dialect!r}", f"did you mean {nearest(dialect, known)}?")
    settings = address.settings(options, texts=("negative_prompt", "name", "key"))
    if dialect == "editthinker":
        return [EditThinkerEditor.load(url, **settings) for url in address.urls]
    return [OpenAIImagesEditor.load(url, **{"dialect": dialect, **settings}) for url in address.urls]
