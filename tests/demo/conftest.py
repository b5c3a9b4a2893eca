"""Small models as the demo loads them."""

import pytest

from hf_ebm import EnergyScoringPipeline
from hf_ebm.demo.demo_models import DemoModel


def without_progress(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def ddaebm(tiny_pipeline):
    scorer = EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler)
    return DemoModel("tiny", tiny_pipeline, without_progress(scorer))


@pytest.fixture
def dual(tiny_dual_mcmc_pipeline):
    scorer = EnergyScoringPipeline(**tiny_dual_mcmc_pipeline.components)
    return DemoModel("tiny", tiny_dual_mcmc_pipeline, without_progress(scorer))
