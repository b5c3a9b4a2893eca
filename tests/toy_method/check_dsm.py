"""What users do with a method, with denoising score matching; see ``test_toy_method.py``."""

import json
import re
from pathlib import Path

import pytest
import torch

import hf_ebm
from hf_ebm.cli.main import main
from hf_ebm.data.toy import sample_toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run, trained from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "dsm"
    main(["train", "dsm", f"output_dir={folder}", "max_steps=300", "num_steps=20", "sample_every=0"])
    return folder


@pytest.fixture
def pipeline(run):
    pipeline = hf_ebm.DSMPipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_loss_is_the_closed_form_of_a_linear_score():
    """``E(x) = 1/2 x A x`` has the gradient ``A x``."""
    from hf_ebm.losses.dsm import denoising_score_matching

    x, noise, half = torch.randn(7, 3), torch.randn(7, 3), torch.randn(3, 3)
    matrix = half + half.T
    loss = denoising_score_matching(lambda x: 0.5 * torch.einsum("bi,ij,bj->b", x, matrix, x), x, noise, 0.3)
    expected = 0.5 * ((0.3 * (x + 0.3 * noise) @ matrix - noise) ** 2).sum() / 7
    torch.testing.assert_close(loss, expected)


def test_the_minimum_is_the_score_of_the_noised_gaussian():
    """``x ~ N(0, s^2 I)``: E = 1/2 ||x||^2 / (s^2 + sigma^2), where the loss is ``D/2 s^2 / (s^2 + sigma^2)``."""
    from hf_ebm.losses.dsm import denoising_score_matching

    std, noise_std = 0.8, 0.6
    precision = torch.tensor(3.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([precision], line_search_fn="strong_wolfe")
    x, noise = std * torch.randn(200_000, 2), torch.randn(200_000, 2)

    def closure():
        optimizer.zero_grad()
        loss = denoising_score_matching(lambda x: 0.5 * precision * x.square().sum(dim=1), x, noise, noise_std)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert precision.item() == pytest.approx(1.0 / (std**2 + noise_std**2), rel=0.01)
    assert closure().item() == pytest.approx(std**2 / (std**2 + noise_std**2), rel=0.01)


def test_it_is_trained_by_name_and_learns(run, pipeline):
    from hf_ebm.losses.dsm import denoising_score_matching

    x, noise = sample_toy("swissroll", 20_000, torch.Generator().manual_seed(1)), torch.randn(20_000, 2)
    trained, untrained = (
        denoising_score_matching(energy_fn, x, noise, noise_std=0.3).item()
        for energy_fn in (lambda x: pipeline.energy_model(x).energy, lambda x: 0.5 * x.square().sum(dim=1))
    )
    assert trained < untrained - 0.1  # the same noise, so that its own variance cancels
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 30


def test_its_configs_are_suggested():
    from hf_ebm.training.config import load_settings
    from hf_ebm.training.train_dsm import DSMSettings

    with pytest.raises(ValueError, match="dsm_swissroll"):
        load_settings(DSMSettings, "dsm_swissroll.yaml", ["--config", "dsm_swisroll"])


def test_it_samples_and_scores(run, pipeline):
    samples = pipeline(64, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert samples.shape == (64, 2) and samples.isfinite().all()
    data, far = sample_toy("swissroll", 200, torch.Generator().manual_seed(1)), torch.full((20, 2), 6.0)
    assert pipeline.score(data).energies.max() < pipeline.score(far).energies.min()
    scorer = hf_ebm.EnergyScoringPipeline.from_pretrained(run)
    scorer.set_progress_bar_config(disable=True)
    scorer.calibrate(data, target_fpr=0.05)
    assert scorer(far).is_ood.all() and "reconstruction" not in scorer.available_scores
    assert hf_ebm.EnergyScoringPipeline.from_pipe(pipeline).energy_model is pipeline.energy_model
    with pytest.raises(ValueError, match="not defined for its method"):
        hf_ebm.EnergyScoringPipeline.from_pretrained(run, load_reconstruction=True)
    assert pipeline.temperature == 1.0 and pipeline.data_noise_std == 0.3


def test_info_describes_it(run, capsys):
    main(["info", "--model", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "denoising score matching" and found["tasks"] == ["generate", "score"]
    assert found["networks"]["energy_model"]["class"] == "DSMEnergyModel" and found["sample_shape"] == [2]


def test_its_card_is_written_and_runs(run, monkeypatch):
    card = (run / "README.md").read_text()
    assert "denoising score matching" in card and "standard deviation 0.3" in card
    monkeypatch.chdir(run)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code, names)
    assert names["energies"].shape == (16,) and type(names["energy_model"]).__name__ == "DSMEnergyModel"


def test_the_demo_samples_it_by_its_samplers(pipeline):
    from hf_ebm.demo.demo_models import DemoModel
    from hf_ebm.demo.generation import generate, samplers_of, step_limits

    model = DemoModel("toy", pipeline, hf_ebm.EnergyScoringPipeline.from_pipe(pipeline))
    assert list(samplers_of(model)) == ["Langevin (its own)", "MALA"] and step_limits(model, "MALA")[:2] == (1, 20)
    drawn = generate(model, 5, "Langevin (its own)", 6, 7)
    expected = pipeline(5, 6, generator=torch.Generator().manual_seed(7), output_type="pt").images
    torch.testing.assert_close(drawn.states[-1], expected[:3])
    assert drawn.states.shape == (6, 3, 2) and drawn.energies.shape == (6, 5)
    torch.testing.assert_close(drawn.energies[-1], pipeline.score(expected).energies)


def test_the_digits_demo_offers_the_methods_that_train_on_digits():
    from hf_ebm.training.digits_demo import run

    with pytest.raises(SystemExit, match="one of ddaebm, dual_mcmc, got 'dsm'"):
        run("dsm", [])


def test_only_exported_classes_are_loaded(run, monkeypatch):
    monkeypatch.delitem(hf_ebm.EXPORTS, "DSMEnergyModel")
    with pytest.raises(ValueError, match=r"a DSMEnergyModel of 'hf_ebm.models.dsm_energy'; only classes of hf_ebm"):
        hf_ebm.DSMPipeline.from_pretrained(run)


def test_the_copy_is_the_package():
    assert Path(hf_ebm.__file__).parents[1].name == "copy"
