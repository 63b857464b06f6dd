"""What ends a training run that the user can mend."""

from __future__ import annotations

from premeditate.errors import PremeditateError


class TrainingError(PremeditateError):
    """A run that cannot begin or go on. The last checkpoint is whole."""
