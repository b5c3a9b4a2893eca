"""The authors' networks of Dual-MCMC Teaching in small, from ``tests/reference/dual_mcmc_networks.safetensors``."""

from pathlib import Path

from safetensors import safe_open

FILE = Path(__file__).parent / "reference" / "dual_mcmc_networks.safetensors"
NETWORKS = {"netG": "generator", "netE": "energy", "netI": "inference"}


def reference_tensors(name):
    """Inputs and outputs of one network, such as ``"cifar10_energy"``."""
    return {key: value for key, value in _tensors(name).items() if not key.startswith("state/")}


def reference_checkpoint(data):
    """The three networks of ``"cifar10"`` or ``"celeba64"`` as the authors save them."""
    states = {key: _tensors(f"{data}_{name}") for key, name in NETWORKS.items()}
    return {
        key: {name.removeprefix("state/"): value for name, value in state.items() if name.startswith("state/")}
        for key, state in states.items()
    }


def _tensors(name):
    with safe_open(FILE, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118 (it is no dict)
        return {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}
