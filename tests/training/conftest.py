"""Each training script in turn, with a fresh accelerate state for every test."""

import pytest
from small_runs import SCRIPTS, Script


@pytest.fixture(params=sorted(SCRIPTS))
def script(request):
    return Script(request.param)


@pytest.fixture(autouse=True)
def _fresh_accelerator_state():
    """Each run in this process may choose its own precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _coarse_grid(monkeypatch):
    """Runs on 2-D data measure themselves on fewer points."""
    monkeypatch.setattr("hf_ebm.evaluation.toy_metrics.GRID_RESOLUTION", 64)
    monkeypatch.setattr("hf_ebm.evaluation.toy_metrics.NUM_POINTS", 1000)
