"""Numbers and durations as text, and validation of numbers."""

import numpy as np
import pytest
import torch

from hf_ebm.utils.validation import (
    MAX_NUMPY_SEED,
    check_count,
    check_fraction,
    check_seed,
    counted,
    duration,
    is_integer,
    is_number,
    python_number,
)


def test_numbers():
    assert counted(1, "seed") == "1 seed" and counted(1200, "seed") == "1,200 seeds"
    assert counted(2, "process", "processes") == "2 processes"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.04 seconds"), (4.32, "4.3 seconds"), (60, "1.0 minutes"), (95, "1.6 minutes"), (7200, "2.0 hours")],
)
def test_times(seconds, words):
    assert duration(seconds) == words


WHOLE = [3, np.int8(3), np.uint8(3), np.int64(3)]
REAL = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5)]
NEITHER = [True, np.bool_(True), "3", None, 3j, torch.tensor(3), np.array(3)]


@pytest.mark.parametrize("value", [*WHOLE, *REAL, *NEITHER], ids=repr)
def test_numbers_are_pythons_and_numpys_and_no_bool(value):
    whole, real = any(value is one for one in WHOLE), any(value is one for one in REAL)
    assert is_integer(value) == whole and is_number(value) == (whole or real)
    for check, fits in ((lambda: check_count("n", value, 1), whole), (lambda: check_seed("n", value), whole)):
        if fits:
            check()
        else:
            with pytest.raises(ValueError, match="n must be a whole number"):
                check()
    if real:
        check_fraction("n", value)
    else:
        with pytest.raises(ValueError, match="n must be a number between 0 and 1"):
            check_fraction("n", value)


def test_numpy_numbers_become_pythons():
    values = python_number([np.int64(2), (np.float32(0.5), True), "a", None])
    assert values == [2, (0.5, True), "a", None]
    assert [type(value) for value in (values[0], *values[1])] == [int, float, bool]


@pytest.mark.parametrize(("value", "largest"), [(-1, 2**64 - 1), (2**64, 2**64 - 1), (2**32, MAX_NUMPY_SEED)])
def test_seeds_out_of_range(value, largest):
    with pytest.raises(ValueError, match=rf"seed must be a whole number from 0 to 2\*\*\d+ - 1 .*got {value}"):
        check_seed("seed", value, largest)
    torch.Generator().manual_seed(check_seed("seed", np.uint64(2**64 - 1)))
    np.random.RandomState(check_seed("seed", MAX_NUMPY_SEED, MAX_NUMPY_SEED))
