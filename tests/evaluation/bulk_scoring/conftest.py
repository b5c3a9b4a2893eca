"""A folder with a calibrated small model, and settings to score digits with it."""

import shutil

import pytest

from hf_ebm import EnergyScoringPipeline
from hf_ebm.data.digits import load_digits
from hf_ebm.evaluation.bulk_scoring import ScoringSettings
from hf_ebm.scoring.calibration import Calibration


@pytest.fixture
def scorer(tiny_pipeline):
    scorer = EnergyScoringPipeline.from_pipe(tiny_pipeline)
    scorer.set_progress_bar_config(disable=True)
    return scorer


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture
def model(scorer, saved, tmp_path):
    """The folder of `scorer`, calibrated: once, as its weights are always the same."""
    if not any(saved.iterdir()):
        scorer.calibrate(load_digits("train")[0][:100], target_fpr=0.1)
        scorer.save_pretrained(saved)
    shutil.copytree(saved, tmp_path / "model")
    scorer.calibration = Calibration.load(saved)
    return str(tmp_path / "model")


@pytest.fixture
def settings(model, tmp_path):
    def make(**changes):
        common = {"model": model, "dataset": "digits", "split": "test", "output": tmp_path / "out"}
        common["score"] = "energy"  # the quickest
        return ScoringSettings(**{**common, "batch_size": 16, "shard_size": 50, "num_workers": 0, **changes})

    return make
