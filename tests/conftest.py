"""Small networks for all tests."""

import functools
import http.server
import threading

import pytest
import torch

# Helpers whose asserts are to say what they compared, as those of a test do.
pytest.register_assert_rewrite("known_log_z", "known_moments", "reloading", "small_runs")

TINY = {
    "image_size": 8,
    "num_channels": 1,
    "patch_size": 1,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "layers_per_block": 1,
    "mid_attention": True,
}


LONG = (
    "tests/on_second_device",
    "tests/models/test_upsampling.py",
    "tests/demo/test_space_browser.py",
    "tests/training/test_stopping.py",
    "tests/training/test_train_",
    "tests/toy_method",
    "tests/hub/test_whole_way.py",
)


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that no worker is left with one when the others have finished."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_pipeline():
    """A DDAEBM pipeline of tiny networks with random weights everywhere (the zero-initialised layer too)."""
    from hf_ebm import DDAEBMPipeline, DDAEBMScheduler
    from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings

    overrides = {"unet": dict(TINY), "generator": {"latent_dim": 4}, "inference": {"block_out_channels": (8, 16)}}
    generator_model, energy_model, inference_model = build_ddaebm_models(
        ddaebm_model_settings("digits", overrides=overrides)
    )
    for parameter in energy_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = DDAEBMPipeline(generator_model, DDAEBMScheduler(), energy_model, inference_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def tiny_dual_mcmc_pipeline():
    """A Dual-MCMC pipeline of tiny residual networks whose buffers are not at their start either."""
    from hf_ebm import DualMCMCPipeline, LangevinScheduler
    from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings

    overrides = {
        "generator": {"block_out_channels": (8, 8), "patch_size": 1},
        "energy": {"block_out_channels": (8, 8), "patch_size": 1},
        "inference": {"block_out_channels": (8, 16)},
    }
    generator_model, energy_model, inference_model = build_dual_mcmc_models(
        dual_mcmc_model_settings("digits", latent_dim=4, overrides=overrides)
    )
    for _ in range(3):  # running statistics and singular values move in training forwards
        energy_model.train()(generator_model.train()(torch.randn(16, 4)).sample.detach())
    pipeline = DualMCMCPipeline(
        generator_model.eval(),
        LangevinScheduler(num_train_timesteps=5, step_size=0.5, noise_std=0.01),
        energy_model.eval(),
        inference_model.eval(),
        LangevinScheduler(num_train_timesteps=3, step_size=0.1, noise_std=0.1),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def hub_server():
    """A Hub on this machine."""
    from loopback_hub.server import Hub

    with Hub() as server:
        yield server


@pytest.fixture(scope="session")
def client(hub_server, tmp_path_factory):
    """A process of alice's with that Hub, which has no Xet: one for all tests, as its imports take seconds."""
    from loopback_hub.client import Client

    process = Client(hub_server.url, tmp_path_factory.mktemp("home"), "alice-token")
    yield process
    process.close()


@pytest.fixture
def file_server(tmp_path, monkeypatch):
    """A web server on this machine, of the files in `tmp_path`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    served.server_close()
