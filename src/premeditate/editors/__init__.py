"""The Editor protocol and its adapters, one file each. Importing this package loads no model library."""

from premeditate.editors.base import Editor, EditRequest, EditResult

__all__ = ["EditRequest", "EditResult", "Editor"]
