"""Run folders for the commands: one of each method."""

import pytest


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def dual_folder(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "dual")
    return str(tmp_path / "dual")
