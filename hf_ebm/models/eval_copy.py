"""Evaluate a network in eval mode without changing it: copies that share its weights.

Sampling and scoring run in eval mode, with frozen parameters. If that were set on the network
itself, every other thread that uses it would see the change.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hf_ebm.utils.torch_utils import no_grad, without_inference_tensors

M = TypeVar("M", bound=nn.Module)


def in_eval(model: M) -> M:
    """`model` if all of it is in eval mode, else an `eval_copy`; for forward passes without gradients."""
    return eval_copy(model) if any(module.training for module in model.modules()) else model


@no_grad
def eval_copy(model: M) -> M:
    """Copy the modules of `model`, in eval mode and frozen, on the same parameters and buffers.

    Weights that are computed from others (spectral norm) are computed once, when the copy is made.
    A copy of a compiled model runs eagerly.

    The hooks that accelerate installs (CPU offload, autocast) are copied, and act on the copy's weights. Those of
    diffusers (layerwise casting, group offloading) hold on to the original: a network that has some is no copy, but
    itself, put in eval mode.

    Args:
        model: The network, in any mode. It is not changed, but for the mode of one with diffusers' hooks.
    """
    if any(getattr(vars(module).get("_diffusers_hook"), "hooks", None) for module in model.modules()):
        return model.eval()
    return _copy(model, {})


def _copy(module: Any, copies: dict[int, Any]) -> Any:
    """Copy one module and its children. `copies`, by the original's id, keep shared parts shared."""
    module = module._modules.get("_orig_mod", module)  # of `torch.compile(module)`
    if id(module) in copies:
        return copies[id(module)]
    copied = copies[id(module)] = object.__new__(type(module))
    vars(copied).update({name: _rebind(value, module, copied) for name, value in vars(module).items()})
    vars(copied).pop("_compiled_call_impl", None)  # bound to the original
    vars(copied)["training"] = False
    vars(copied)["_parameters"] = {name: _frozen(parameter, copies) for name, parameter in module._parameters.items()}
    vars(copied)["_buffers"] = {name: without_inference_tensors(value) for name, value in module._buffers.items()}
    vars(copied)["_modules"] = {
        name: None if child is None else _copy(child, copies) for name, child in module._modules.items()
    }
    if parametrize.is_parametrized(module) and not any("_hf_hook" in vars(part) for part in module.modules()):
        # Hooks of offloading load the tensors that a weight is computed from in each forward.
        for name, parametrization in copied._modules.pop("parametrizations").items():
            copied._parameters[name] = nn.Parameter(parametrization(), requires_grad=False)
        copied.__class__ = parametrize.type_before_parametrizations(module)
    return copied


def _frozen(parameter: Tensor | None, copies: dict[int, Any]) -> Tensor | None:
    """A parameter on the same memory that requires no gradient."""
    if parameter is None:
        return None
    if id(parameter) not in copies:
        weight = without_inference_tensors(parameter.detach())
        copies[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    return copies[id(parameter)]


def _rebind(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """An attribute of `old` for `new`: its methods, such as a wrapped ``forward``, are rebound."""
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, functools.partial) and value.args and value.args[0] is old:
        bound = functools.partial(value.func, new, *value.args[1:], **value.keywords)
        return functools.update_wrapper(bound, value)
    return value
