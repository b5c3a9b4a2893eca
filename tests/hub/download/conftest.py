"""A pipeline folder as written by `save_pretrained`."""

import pytest


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
