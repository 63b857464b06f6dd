"""The Reasoner protocol and its adapters, one file each. Importing this package loads no model library."""

from premeditate.reasoners.base import ChatRequest, Completion, Reasoner

__all__ = ["ChatRequest", "Completion", "Reasoner"]
