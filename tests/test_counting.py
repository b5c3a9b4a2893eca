"""Numbers of things, and times, in words."""

import pytest

from hf_ebm.counting import counted, duration


def test_numbers():
    assert counted(1, "seed") == "1 seed" and counted(1200, "seed") == "1,200 seeds"
    assert counted(2, "process", "processes") == "2 processes"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.04 seconds"), (4.32, "4.3 seconds"), (60, "1.0 minutes"), (95, "1.6 minutes"), (7200, "2.0 hours")],
)
def test_times(seconds, words):
    assert duration(seconds) == words
