"""A bootstrap of fewer resamples, for tests of other figures: its time grows with chains times resamples."""

import pytest


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr("hf_ebm.likelihood.ais.NUM_RESAMPLES", 200)
