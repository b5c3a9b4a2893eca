"""A second device, ``second:0``, emulated in Python: its tensors are in CPU memory, and reject CPU tensors.

Importing this module registers it, for the whole process: torch's PrivateUse1 backend, whose tensors wrap CPU tensors
and whose kernels are the CPU's. As on a GPU, an operation on tensors of both devices raises, and so do ``numpy()`` and
a random number generator of the other device; float64 raises, as on MPS. Numbers are the CPU's, random ones too, but
for what torch does in another order on devices (optimizers). What made the host wait for the device is counted in
`WAITS`, by operation: values read (``item``, ``tolist``, ``if tensor``) and copies to the CPU or from it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
WAITS: Counter[str] = Counter()
_aten = torch.ops.aten
_CROSS_DEVICE = {_aten.copy_.default, _aten._foreach_copy_.default}
_CPU_INDICES = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_FACTORIES = (
    "arange _efficientzerotensor empty empty_strided eye full linspace logspace normal ones rand randint randn "
    "randperm scalar_tensor tril_indices zeros _to_copy"
)
_CPU_GENERATOR = torch.Generator


class SecondTensor(torch.Tensor):
    """A tensor on the second device: the shape and strides of `data`, a CPU tensor, and every operation on that."""

    data_on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> SecondTensor:
        layout = {"strides": data.stride(), "storage_offset": data.storage_offset(), "layout": data.layout}
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), dtype=data.dtype, device=torch.device(NAME, 0), **layout
        )
        tensor.data_on_cpu = data.detach()
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = SecondTensor(self.data_on_cpu.clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        copied = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        memo[id(self)] = copied
        return copied

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SecondTensor({self.data_on_cpu})"

    # Implemented by torch only for its own devices
    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.data_on_cpu.tolist()

    def storage(self) -> Any:
        return self.data_on_cpu.storage()

    def untyped_storage(self) -> Any:
        return self.data_on_cpu.untyped_storage()

    def data_ptr(self) -> int:
        return self.data_on_cpu.data_ptr()


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation's CPU kernel, and put what it returns where the operation would.

    Raises:
        RuntimeError: If tensors of both devices meet; a number, a CPU tensor without dimensions, is let through.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    seconds = [tensor for tensor in tensors if isinstance(tensor, SecondTensor)]
    if seconds and function not in _CROSS_DEVICE:
        # indices may be on the CPU; a list of tensors that are put together may not hold numbers of the CPU's
        meeting = [args[0], *args[2:3]] if function in _CPU_INDICES else tensors
        joined = function in (_aten.stack.default, _aten.cat.default)
        strangers = [x for x in meeting if not isinstance(x, SecondTensor) and (joined or x.dim() > 0)]
        if strangers:
            shapes = [tuple(tensor.shape) for tensor in strangers]
            raise RuntimeError(f"all tensors must be on one device, but {function} got {NAME} and cpu {shapes}.")

    target = kwargs.get("device")
    to_second = bool(seconds) if target is None else torch.device(target).type == NAME
    if seconds and (not to_second or function is _aten._local_scalar_dense.default):
        WAITS[str(function)] += 1
    elif tensors and not seconds and to_second and function is _aten._to_copy.default:
        WAITS["from the CPU"] += 1
    on_cpu = tree_map(lambda x: x.data_on_cpu if isinstance(x, SecondTensor) else x, (args, kwargs))
    cpu_kwargs = {**on_cpu[1], **({"device": torch.device("cpu")} if target is not None else {})}
    with torch.no_grad():
        result = function(*on_cpu[0], **cpu_kwargs)

    if function is _aten.copy_.default:
        if seconds and not isinstance(args[0], SecondTensor):
            WAITS[str(function)] += 1
        elif seconds and not isinstance(args[1], SecondTensor):
            WAITS["from the CPU"] += 1
        return args[0]
    if seconds and torch.Tag.inplace_view in function.tags:  # the wrapper's shape changes, too
        with no_dispatch():
            function(*args, **kwargs)
        return args[0]
    if not to_second:
        return result
    if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(result)):
        raise TypeError(f"{NAME} has no float64, as MPS has none, and {function} makes one.")
    known = {id(tensor.data_on_cpu): tensor for tensor in seconds}  # in place and out=: the wrappers that came

    def put(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else SecondTensor(x)

    return tree_map(put, result)


class Generator(_CPU_GENERATOR):
    """`torch.Generator` that reports the second device if it was created there."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, device="cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.where = torch.device(NAME, 0) if torch.device(device).type == NAME else torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.where

    def manual_seed(self, seed: int) -> Generator:
        super().manual_seed(seed)
        return self


class CheckGenerators(TorchFunctionMode):
    """Raise a `RuntimeError` where random numbers are to be drawn on one device with a generator of another."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            of_tensors = (x.device for x in args if isinstance(x, torch.Tensor))
            device = torch.device(kwargs.get("device") or next(of_tensors, "cpu"))
            if generator.device.type != device.type:
                raise RuntimeError(f"the generator is on {generator.device.type}, the numbers are to be on {device}.")
        return function(*args, **kwargs)


def as_kernel(function: Any) -> Any:
    """`run` of one operation."""
    return lambda *args, **kwargs: run(function, args, kwargs)


def _register() -> list[Any]:
    """Make the device known to torch; returns what must live as long as it does."""
    _setup_privateuseone_for_python_backend(NAME)
    kernels = torch.library.Library("aten", "IMPL")
    for name in _FACTORIES.split():
        packet = getattr(_aten, name)
        for overload in packet.overloads():
            if "out" not in overload and "names" not in overload:
                full_name = name if overload == "default" else f"{name}.{overload}"
                kernels.impl(full_name, as_kernel(getattr(packet, overload)), "PrivateUse1")
    torch.Generator = Generator  # type: ignore[misc]
    mode = CheckGenerators()
    mode.__enter__()
    return [kernels, mode]


_ALIVE = _register()
