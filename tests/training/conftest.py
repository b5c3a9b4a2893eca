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
