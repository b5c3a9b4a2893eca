"""A pipeline folder as `save_pretrained` leaves it."""

import pytest


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
