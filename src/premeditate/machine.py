"""What this machine has: cores, memory, devices, and which models' weights are in the hub cache. No network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""What a container is given, of cgroups 2 and 1; there may be less of it than the machine has."""
DTYPES = ("float32", "bfloat16", "float16")
WHOLE = 0.8
"""Share of a model's size that must be in the cache to count as all of it: published sizes are rounded."""


@dataclass(frozen=True)
class Device:
    """`name`: as torch calls it ("cpu", "cuda:0", "mps"). `memory_gb`: 10^9 bytes in all, None: not known. `dtypes`:
    those in which it multiplied two small matrices."""

    name: str
    what: str
    memory_gb: float | None
    dtypes: tuple[str, ...] = ()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    """Main memory that this process may use, in 10^9 bytes; None where the system does not say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # Windows
        return None
    for path in _LIMITS:
        try:
            found = min(found, int(Path(path).read_text()))
        except (OSError, ValueError):  # not here, or "max"
            continue
    return found / 1e9


def devices() -> list[Device]:
    """The CPU, and every accelerator that torch sees. Imports torch."""
    import torch

    found = [
        Device(
            "cpu", f"{_many(cores(), 'core')}, {_many(torch.get_num_threads(), 'thread')}", memory_gb(), _dtypes("cpu")
        )
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        name = f"cuda:{index}"
        found.append(Device(name, str(about.name), about.total_memory / 1e9, _dtypes(name)))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", memory_gb(), _dtypes("mps")))
    return found


def _dtypes(device: str) -> tuple[str, ...]:
    import torch

    works = []
    for name in DTYPES:
        try:
            one = torch.ones(8, 8, dtype=getattr(torch, name), device=device)
            if (one @ one).sum().item() == 512:
                works.append(name)
        except Exception:  # not implemented there, no memory left, a driver that does not fit: it does not work
            continue
    return tuple(works)


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloaded, by the same rules."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def cached_gb(repo: str) -> float:
    """10^9 bytes of a hub repository `org/name` that are in the cache; 0 where it is not there."""
    blobs = hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs"
    try:
        sizes = [entry.stat().st_size for entry in os.scandir(blobs) if not entry.name.endswith(".incomplete")]
    except OSError:
        return 0.0
    return sum(sizes) / 1e9


def where(spec: str, size_gb: float | None) -> str:
    """Where the weights of a folder or hub id are: "in the package", "here", "in the cache", "partly in the cache (3 of
    58 GB)" or "not here"."""
    if Path(spec).is_dir():
        return "in the package" if Path(spec).is_relative_to(Path(__file__).parent) else "here"
    if Path(spec).is_absolute():
        return "not here"
    held = cached_gb(spec)
    if held == 0:
        return "not here"
    if size_gb is None or held >= WHOLE * size_gb:
        return "in the cache"
    return f"partly in the cache ({held:.2g} of {size_gb:.2g} GB)"


def fits(needed_gb: float | None, found: list[Device]) -> tuple[bool | None, str]:
    """Whether a model that needs `needed_gb` of GPU memory runs on one of the devices, and where, in words.

    On a CPU models are loaded in float32, which takes twice as much. None: not known.
    """
    if needed_gb is None:
        return None, "not known"
    for device in found:
        if device.name != "cpu" and device.memory_gb is not None and device.memory_gb >= needed_gb:
            return True, f"on {device.name}"
    main = next((d.memory_gb for d in found if d.name == "cpu"), None)
    if main is None:
        return None, "not known"
    if main >= 2 * needed_gb:
        return True, "on the CPU" + ("" if needed_gb < 1 else ", slowly")
    if len(found) > 1 and main >= needed_gb:
        return True, "in parts (offload)"
    return False, "no"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
