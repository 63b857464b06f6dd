"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from premeditate.errors import WriteError

_MENDS = {
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "the file system is read-only, choose another place",
    errno.ENOSPC: "the disk is full, free some space",
    errno.EDQUOT: "your disk quota is used up, free some space",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


def write_error(path: Path | str, error: OSError | ValueError) -> WriteError:
    """The `WriteError` that says in one line why `path` could not be written."""
    number = error.errno if isinstance(error, OSError) else None
    why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return WriteError(f"cannot write {path}: {why}", _MENDS.get(number or 0, "choose another output path"))


def _target(path: Path | str) -> Path:
    """Where the bytes end up: symbolic links followed, so that a link stays a link and its target is replaced."""
    target = Path(path).expanduser().resolve()
    if target.is_dir():
        raise WriteError(f"cannot write {path}: it is a folder", "give a file name inside it")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    # Replacing /dev/null or a socket by a picture would be a disaster, so only plain files are replaced.
    if not stat.S_ISREG(mode):
        raise WriteError(f"cannot write {path}: it is not a plain file", "give the name of a new or ordinary file")
    return target


def check_writable(path: Path | str) -> Path:
    """The resolved path if `write_atomic` could write it now; `WriteError` otherwise.

    Asked early, before an edit has cost anything. It proves the answer by making and removing an empty file in the
    nearest existing folder; missing folders are made by `write_atomic`, not here.
    """
    try:
        target = _target(path)
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise WriteError(f"cannot write {path}: {folder} is not a folder", "choose another output path")
        probe = folder / f".premeditate-{secrets.token_hex(8)}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        probe.unlink()
    except WriteError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise write_error(path, error) from error
    return target


def write_atomic(path: Path | str, data: bytes, *, sync: bool = True) -> Path:
    """Write `data` to `path` through a temporary file and a rename. Missing folders are made.

    With `sync` the bytes are on the disk before the rename, so that a power cut leaves the old file or the new one.
    Raises `WriteError`; the temporary file never stays behind.
    """
    try:
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".premeditate-{secrets.token_hex(8)}"
        try:
            # 0o666 is cut down by the umask, as for any file the user makes.
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except WriteError:
        raise
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error
    return target
