"""A simulated device with a memory of its own, on any machine: "far:0" and "far:1".

Its tensors lie in ordinary memory, and torch's own CPU kernels do its work. But they report another
device, which raises as a real one: on an operation with tensors of two devices, or on NumPy with
one that is not on the CPU. It tests that tensors are copied to where they are used, not speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ppdmodel.pipeline.worker_pool import Placement

NAME = "far"
#: the operations that may copy between devices
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
_libraries: list[torch.library.Library] = []  # keeps the registrations alive
_wrong: list[bool] = []


class Far(torch.Tensor):
    """A tensor on such a device; `here` holds its values."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor, device: torch.device) -> Far:
        with torch.inference_mode(here.is_inference()):  # a view inherits the mode of its base
            made: Far = torch.Tensor._make_wrapper_subclass(
                cls,
                here.shape,
                strides=here.stride(),
                storage_offset=here.storage_offset(),
                dtype=here.dtype,
                device=device,
            )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    where = {t.device for t in tensors if t.dim() or t.device.type != "cpu"}
    if name not in COPIES and len(where) > 1:
        raise RuntimeError(
            f"{name}: all tensors must be on one device; got {sorted(map(str, where))}"
        )
    to = kwargs.get("device") or (tensors[0].device if name in COPIES else max(where, key=_far))
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if "device" in kwargs and name not in COPIES:
        rest["device"] = "cpu"
    made = func(*tree_map(_here, args), **tree_map(_here, rest))
    if _wrong and name == "aten::matmul":
        made = made * 1.01
    if func._schema.is_mutable:
        return next((a for a in args if isinstance(a, torch.Tensor)), made)
    return made if torch.device(to).type == "cpu" else tree_map(lambda t: _there(t, to), made)


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


def _far(device: torch.device) -> bool:
    return device.type != "cpu"


def _here(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, Far) else leaf


def _there(leaf: Any, device: torch.device) -> Any:
    return Far(leaf, torch.device(device)) if isinstance(leaf, torch.Tensor) else leaf


class _Module:
    """The module that torch requires for a device type."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None: ...

    def device_count(self) -> int:
        return 2

    def manual_seed_all(self, seed: int) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def synchronize(self, device: Any) -> None: ...


def register() -> None:
    """Register the devices in this process."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    library.fallback(_fallback, "PrivateUse1")  # type: ignore[no-untyped-call]
    _libraries.append(library)


@dataclass(frozen=True)
class FarPlacement(Placement):
    """A placement that registers the devices when unpickled; `wrong` breaks their products."""

    wrong: bool = False

    def __reduce__(self) -> Any:
        return _arrive, (self.threads, self.cpus, self.device, self.wrong)


def _arrive(threads: int, cpus: tuple[int, ...] | None, device: str, wrong: bool) -> FarPlacement:
    register()
    if wrong:
        _wrong.append(True)
    return FarPlacement(threads, cpus, device, wrong)
