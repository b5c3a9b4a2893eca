"""Run the training scripts with tiny settings, and compare runs."""

import json
from pathlib import Path

import torch
import yaml
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hf_ebm.training import train_ddaebm, train_dual_mcmc
from hf_ebm.training.config import make_settings

ROOT = Path(__file__).parents[1]
RUN = {"batch_size": 8, "max_steps": 4, "log_every": 1, "sample_every": 0, "checkpoint_every": 2, "num_grid_samples": 4}
SCRIPTS = {  # module, its settings, the pipeline, tiny settings, a loss function it calls once a step and its term
    "ddaebm": (
        train_ddaebm,
        train_ddaebm.DDAEBMSettings,
        "DDAEBMPipeline",
        {
            **RUN,
            "models": {
                "unet": {"base_channels": 8, "channel_multipliers": [1]},
                "generator": {"latent_dim": 4},
                "inference": {"block_out_channels": [8, 16]},
            },
        },
        ("adversarial_term", "adversarial"),
    ),
    "dual_mcmc": (
        train_dual_mcmc,
        train_dual_mcmc.DualMCMCSettings,
        "DualMCMCPipeline",
        {
            **RUN,
            "latent_dim": 4,
            "ema_decay": 0.9,
            "x_num_steps": 3,
            "z_num_steps": 2,
            "models": {
                "generator": {"block_out_channels": [8, 8]},
                "energy": {"block_out_channels": [8, 8]},
                "inference": {"block_out_channels": [8, 16]},
            },
        },
        ("inference_loss", "inference"),
    ),
}


def launcher(processes):
    """The module and options of `accelerate launch` for so many CPU processes."""
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]
    options += ["--main_process_port", "0"]  # the next free one: tests run beside each other
    return ["accelerate.commands.launch", *options, "--num_processes", str(processes)]


def in_processes(processes, function, *arguments, **named):
    """Call the function in each of so many forked CPU processes of one group, as `accelerate launch` starts them."""

    def call():
        torch.set_num_threads(1)  # a forked process has none of this one's threads
        AcceleratorState._reset_state(reset_partial_state=True)
        function(*arguments, **named)

    debug_launcher(call, num_processes=processes)


class Script:
    """One training script with tiny settings."""

    def __init__(self, name):
        self.name = name
        self.module, self.settings_class, self.pipeline, self.tiny, self.loss = SCRIPTS[name]

    def settings(self, output_dir, **changes):
        return make_settings(self.settings_class, {**self.tiny, "output_dir": str(output_dir), **changes})

    def train(self, output_dir, **changes):
        return self.module.train(self.settings(output_dir, **changes))

    def train_in(self, processes, output_dir, **changes):
        """Train in so many CPU processes, forked from this one: nothing is imported again."""
        in_processes(processes, self.train, output_dir, **changes)

    def config_file(self, tmp_path, **changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**self.tiny, **changes}))
        return str(path)


def all_weights(folder):
    """Every tensor of a run's pipeline."""
    tensors = {}
    for path in sorted(folder.glob("*_model/*.safetensors")):
        tensors.update({f"{path.parent.name}/{key}": value for key, value in load_file(path).items()})
    return tensors


def assert_same_run(first, second):
    a, b = all_weights(first), all_weights(second)
    assert a.keys() == b.keys() and len(a) > 20
    for key in a:
        assert torch.equal(a[key], b[key]), key
    read = lambda folder: [  # noqa: E731
        {k: v for k, v in json.loads(line).items() if k != "steps_per_second"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert read(first) == read(second)
