"""Contenders of `quality.py`: a training script, its config and its samplers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import baseline_ddgan
import baseline_ddpm
import baseline_generator_only
import baseline_short_run
from baselines import CONFIGS as BASELINE_CONFIGS
from baselines import Sampler, sampler_of
from changes import SHIPPED, split_change

from hf_ebm import DDAEBMPipeline, DualMCMCPipeline
from hf_ebm.training.config import CONFIGS


@dataclasses.dataclass(frozen=True)
class Contender:
    """A training method and the samplers of its model.

    Attributes:
        title: Name in the table.
        script: Arguments of Python: ``("-m", module)`` or ``(file,)``.
        method: The config is ``<method>_<data>.yaml``.
        configs: Folder of the configs.
        sample_run: ``(folder, number, batch size, seed, device, steps) -> batches`` of images in [-1, 1], on the CPU.
        samplers: Number of steps by sampler name; None: as in training.
        changes: Settings that replace those of the config.
        pipeline: Class whose `score` gives the energies; None: no trained energy.
    """

    title: str
    script: tuple[str, ...]
    method: str
    configs: Path
    sample_run: Sampler
    samplers: dict[str, int | None]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    pipeline: Any = None

    def config(self, data: str) -> Path:
        """Path of the config for a data set."""
        return self.configs / f"{self.method}_{data}.yaml"


def package_script(method: str) -> tuple[str, ...]:
    """A training script of the package."""
    return ("-m", f"hf_ebm.training.train_{method}")


def baseline_script(module: Any) -> tuple[str, ...]:
    """A training script beside this file."""
    return (str(Path(module.__file__)),)


CONTENDERS = {
    "ddaebm": Contender(
        "DDAEBM",
        package_script("ddaebm"),
        "ddaebm",
        CONFIGS,
        sampler_of(DDAEBMPipeline),
        {"DDAEBM": None},
        pipeline=DDAEBMPipeline,
    ),
    "ddgan": Contender(
        "denoising diffusion GAN",
        baseline_script(baseline_ddgan),
        "ddgan",
        BASELINE_CONFIGS,
        baseline_ddgan.sample_run,
        {"DDGAN": None},
    ),
    "ddpm": Contender(
        "DDPM",
        baseline_script(baseline_ddpm),
        "ddpm",
        BASELINE_CONFIGS,
        baseline_ddpm.sample_run,
        {f"DDPM, DDIM {steps} steps": steps for steps in (4, 10, 50)},
    ),
    "dual_mcmc": Contender(
        "Dual-MCMC Teaching",
        package_script("dual_mcmc"),
        "dual_mcmc",
        CONFIGS,
        sampler_of(DualMCMCPipeline),
        {"Dual-MCMC": None, "Dual-MCMC, without the x-chain": 0},
        pipeline=DualMCMCPipeline,
    ),
    "generator_only": Contender(
        "generator of Dual-MCMC, without an energy",
        baseline_script(baseline_generator_only),
        "dual_mcmc",
        CONFIGS,
        sampler_of(DualMCMCPipeline),
        {"generator only": 0},
    ),
    "short_run": Contender(
        "short-run EBM",
        baseline_script(baseline_short_run),
        "short_run",
        BASELINE_CONFIGS,
        baseline_short_run.sample_run,
        {"short-run EBM": None},
    ),
}


def variants(name: str, changes: list[str]) -> dict[str, Contender]:
    """A contender as shipped, and once for each change to its config.

    Args:
        name: Of `CONTENDERS`.
        changes: Each has one or several ``key=value``, as in a shell.

    Raises:
        ValueError: If a change is not of that form.
    """
    original = CONTENDERS[name]
    found = {}
    for title in (SHIPPED, *changes):
        several = len(original.samplers) > 1
        found[title] = dataclasses.replace(
            original,
            title=title,
            samplers={f"{title}: {label}" if several else title: steps for label, steps in original.samplers.items()},
            changes={**original.changes, **dict(pair.split("=", 1) for pair in split_change(title))},
        )
    return found
