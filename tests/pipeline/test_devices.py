"""Names of devices, and what is said of a machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from ppdmodel.errors import InvalidInputError
from ppdmodel.pipeline import devices as devices_module
from ppdmodel.pipeline.devices import devices, machine, synchronize


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"GPU of {name}")
    assert devices("cpu", 3) == ("cpu",) * 3
    assert devices("cuda", 2) == ("cuda:0", "cuda:1")
    assert devices("cuda:1,cuda:0", 2) == ("cuda:1", "cuda:0")
    assert devices("cuda:1, cuda:1", 2) == ("cuda:1", "cuda:1")
    assert machine(("cpu", "cpu")) == machine()
    assert (
        machine(("cuda:0", "cuda:1")) == f"{machine()}; cuda:0 GPU of cuda:0; cuda:1 GPU of cuda:1"
    )


@pytest.mark.parametrize(
    ("device", "found", "words"),
    [
        ("cuda", 1, "got cuda:0, cuda:1; torch finds 1; name one twice to share it"),
        ("cuda", 0, "torch finds 0; use cpu"),
        ("cuda:0,cuda:2", 2, "torch finds 2"),
        ("cuda:0", 2, "got 1 for 2 units; the same may be named twice"),
        ("cuda:0,cuda:0,cuda:0", 2, "got 3 for 2 units"),
        ("tpu", 2, "such as cuda:0,cuda:1; got 'tpu'"),
        ("cuda:0,cpu", 2, "got 'cuda:0,cpu'"),
        ("cuda:-1,cuda:0", 2, "got 'cuda:-1,cuda:0'"),
        ("", 2, "got ''"),
    ],
)
def test_wrong_names(device: str, found: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(InvalidInputError) as raised:
        devices(device, 2)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "processor", "name"),
    [
        ("processor\t: 0\nmodel name\t: A: B\nmodel name\t: C\n", "P", "A: B"),
        ("processor\t: 0\n", "P", "P"),
        (None, "P", "P"),
        (None, "", "M"),
    ],
)
def test_the_name_of_a_machine(
    lines: str | None, processor: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if lines is not None:
        info.write_text(lines)
    monkeypatch.setattr(devices_module, "Path", lambda _path: info)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(platform, "machine", lambda: "M")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine() == f"{name}, 3 CPUs"


def test_only_devices_are_synchronized(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []

    class Backend:
        synchronize = staticmethod(waited.append)

    monkeypatch.setattr(torch, "get_device_module", lambda device: Backend)
    synchronize(torch.device("cpu"))
    assert not waited
    synchronize(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]
