"""What the train steps of all methods share: an update, its learning rate, and how networks and step are launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_ebm.training.cuda_graph import GraphedStep, why_no_cuda_graph
from hf_ebm.training.method import Method
from hf_ebm.training.run_settings import RunSettings


def prepare_models(models: Sequence[nn.Module], settings: RunSettings) -> None:
    """Training mode and the memory format of `settings`."""
    for model in models:
        model.train()
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_train_step(method: Method, settings: RunSettings, objects: Any) -> Callable[..., dict[str, Tensor]]:
    """The method's train step, launched as `settings` say; where it cannot be a graph, a note says why."""
    if not settings.cuda_graph:
        return method.train_step
    accelerator: Accelerator = objects.accelerator
    if why_not := why_no_cuda_graph(settings, accelerator):
        accelerator.print(f"note: cuda_graph has no effect here: {why_not}.")
        return method.train_step
    return GraphedStep(method.train_step, method.step_kind, objects, accelerator.device)


def update(accelerator: Accelerator, optimizer: Any, loss: Tensor, parameters: Any, settings: RunSettings) -> None:
    """One step of `optimizer` down `loss`."""
    accelerator.backward(loss)
    if settings.max_grad_norm is not None:
        # accelerate's own clipping would unscale the gradients of the other optimizers as well
        accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def cosine_schedule(optimizer: Any, settings: RunSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """From the optimizer's learning rate to ``final_learning_rate`` over ``max_steps``."""
    lowest = min(settings.final_learning_rate, optimizer.defaults["lr"])
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.max_steps, eta_min=lowest)
