"""A store that is not kept: for runs whose record is wanted only while the program lives."""

from __future__ import annotations

import hashlib
from typing import Protocol

from PIL import Image

from premeditate.trace import Event, ImageRef, Started, Trace


class Store(Protocol):
    """What the engine needs of a store; `premeditate.store.RunStore` keeps it on disk."""

    def put_image(self, image: Image.Image) -> ImageRef: ...
    def get_image(self, ref: ImageRef) -> Image.Image: ...
    def append(self, trace_id: str, event: Event) -> None: ...
    def trace(self, trace_id: str) -> Trace: ...
    def traces(self) -> list[str]: ...


class MemoryStore:
    """Traces and images in memory. An image is named by the SHA-256 of its size and RGB samples."""

    def __init__(self) -> None:
        self._images: dict[str, Image.Image] = {}
        self._traces: dict[str, Trace] = {}

    def put_image(self, image: Image.Image) -> ImageRef:
        image = image.convert("RGB")
        name = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()
        self._images.setdefault(name, image)
        return ImageRef(sha256=name, width=image.width, height=image.height)

    def get_image(self, ref: ImageRef) -> Image.Image:
        """A copy: what is stored never changes. Raises ValueError for an unknown image."""
        if ref.sha256 not in self._images:
            raise ValueError(f"image {ref.sha256[:12]} is not in this store")
        return self._images[ref.sha256].copy()

    def append(self, trace_id: str, event: Event) -> None:
        if isinstance(event, Started):
            if trace_id in self._traces:
                raise ValueError(f"trace {trace_id} was already started")
            self._traces[trace_id] = Trace.start(event)
        else:
            self._traces[trace_id] = self.trace(trace_id).apply(event)

    def trace(self, trace_id: str) -> Trace:
        """Raises ValueError for an unknown id."""
        if trace_id not in self._traces:
            raise ValueError(f"there is no trace {trace_id!r} in this store")
        return self._traces[trace_id]

    def traces(self) -> list[str]:
        return list(self._traces)
