"""The CPUs or devices that units compute on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InvalidInputError

CPU, CUDA = "cpu", "cuda"
#: the name of one unit's device
CUDA_NAME = re.compile(r"cuda:(0|[1-9][0-9]*)")


def devices(device: str, units: int) -> tuple[str, ...]:
    """A device for each unit.

    Args:
        device: "cpu"; "cuda", a GPU for each unit; or the GPUs by name, one for each unit, such as
            "cuda:0,cuda:1"; units may share a GPU.
        units: how many.

    Raises:
        InvalidInputError: there are not so many, or the names are not understood.

    >>> devices("cpu", 2)
    ('cpu', 'cpu')
    """
    if device == CPU:
        return (CPU,) * units
    names = [name.strip() for name in device.split(",")]
    if device == CUDA:
        names = [f"cuda:{n}" for n in range(units)]
    if not all(map(CUDA_NAME.fullmatch, names)):
        raise InvalidInputError(
            "device must be cpu, cuda, or one for each unit with commas, such as cuda:0,cuda:1; "
            f"got {device!r}"
        )
    if len(names) != units:
        raise InvalidInputError(
            f"device must name one for each unit; got {len(names)} for {units} units; "
            "the same may be named twice"
        )
    found = torch.cuda.device_count()
    if found <= max(int(name.split(":")[1]) for name in names):
        raise InvalidInputError(
            f"units must not exceed the CUDA devices; got {', '.join(names)}; torch finds {found}; "
            + ("name one twice to share it" if found else "use cpu, or install a torch for CUDA")
        )
    return tuple(names)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queued work; a CPU has none."""
    if device.type != CPU:
        torch.get_device_module(device).synchronize(device)


def machine(names: Sequence[str] = ()) -> str:
    """The processor's name, as far as the system tells it, how many CPUs there are, and the GPUs.

    Args:
        names: the units' devices; CPUs are not named again.
    """
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        known = (s.partition(":")[2].strip() for s in lines if s.startswith("model name"))
        name = next(known, name)
    gpus = [f"; {n} {torch.cuda.get_device_name(n)}" for n in names if n != CPU]
    return f"{name}, {os.cpu_count()} CPUs{''.join(gpus)}"
