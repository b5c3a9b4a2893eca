"""Heat maps: what they are made of, their standardisation, their file, and what is refused."""

import dataclasses
import json

import pytest
import torch
from torch.testing import assert_close

from hf_ebm import EnergyScoringPipeline, MLPEnergyConfig, MLPEnergyModel
from hf_ebm.data.digits import load_digits
from hf_ebm.models.energy import energy_of
from hf_ebm.scoring.calibration import FILE_NAME, REFERENCE_FILE, Calibration
from hf_ebm.scoring.maps import PixelMoments, energy_term_values, smooth


@pytest.fixture
def digits():
    return load_digits("test")[0][:40]


@pytest.fixture
def scorer(tiny_pipeline):
    return EnergyScoringPipeline.from_pipe(tiny_pipeline)


@pytest.fixture
def dual_scorer(tiny_dual_mcmc_pipeline):
    return EnergyScoringPipeline.from_pipe(tiny_dual_mcmc_pipeline)


def values_of(num_images, generator):
    return torch.randn(num_images, 2, 8, 8, generator=generator) * torch.tensor([1.0, 5.0])[:, None, None] + 3.0


def test_half_the_squared_values_sum_to_the_energies(scorer, digits):
    x = 2.0 * digits[:5] - 1.0
    values = energy_term_values(scorer.energy_model, x)
    assert values.shape == (5, 4, 8, 8)
    sums = 0.5 * values.square().sum(dim=(2, 3))
    for t in range(4):
        assert_close(sums[:, t], energy_of(scorer.energy_model, x, t).detach(), rtol=1e-4, atol=1e-4)


def test_smoothing_keeps_constants_sums_and_symmetry():
    assert_close(smooth(torch.full((2, 8, 8), 3.0)), torch.full((2, 8, 8), 3.0))
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 1.0
    blurred = smooth(point)[0]
    assert_close(blurred.sum(), torch.tensor(1.0))
    assert_close(blurred, blurred.T)
    assert_close(blurred[4, 5] / blurred[4, 4], torch.tensor(-0.5).exp())  # of one pixel


def test_maps_are_standardised_and_grow_on_both_sides():
    random = torch.Generator().manual_seed(0)
    reference = values_of(400, random)
    moments = PixelMoments.of(reference)
    maps = moments.heat_maps(values_of(400, random))
    assert_close(maps.mean(), torch.tensor(0.798), rtol=0.02, atol=0)  # E |z| of a normal variable, in all channels
    assert_close(moments.heat_maps(moments.mean[None]), torch.zeros(1, 8, 8))
    step = moments.std * torch.eye(8)[3][:, None] * torch.eye(8)[5]  # of pixel (3, 5) only
    for side in (1.0, -1.0):
        grown = [moments.heat_maps((moments.mean + side * size * step)[None])[0] for size in (1.0, 2.0, 8.0)]
        assert grown[0].argmax() == 3 * 8 + 5
        assert grown[0][3, 5] < grown[1][3, 5] < grown[2][3, 5]
    # the scale of a value and an offset of a pixel change nothing
    scaled = PixelMoments.of(7.0 * reference + torch.arange(8.0))
    x = values_of(3, random)
    assert_close(scaled.heat_maps(7.0 * x + torch.arange(8.0)), moments.heat_maps(x), rtol=1e-3, atol=1e-3)


def test_a_pixel_that_never_varies_gives_finite_maps():
    reference = values_of(50, torch.Generator().manual_seed(0))
    reference[:, :, 0, 0] = -1.0
    maps = PixelMoments.of(reference).heat_maps(reference)
    assert maps.isfinite().all()
    with pytest.raises(ValueError, match="not all equal"):
        PixelMoments.of(torch.ones(5, 1, 8, 8))
    with pytest.raises(ValueError, match="at least 2"):
        PixelMoments.of(reference[:1])


@pytest.mark.parametrize("which", ["scorer", "dual_scorer"])
def test_maps_of_both_methods(which, request, digits, tmp_path):
    """Of any batch size, the same from a saved calibration, and larger where a patch was pasted in."""
    pipe = request.getfixturevalue(which)
    pipe.calibrate(digits, target_fpr=0.1)
    kinds = ["reconstruction", "terms"] if which == "scorer" else ["reconstruction"]
    assert pipe.available_maps == kinds and {*pipe.calibration.pixel_moments} == {*kinds}
    changed = digits[:4].clone()
    changed[:, :, 4:, 4:] = 1.0 - changed[:, :, 4:, 4:]
    for kind in kinds:
        found = pipe(changed, output_maps=kind, batch_size=3)
        assert found.maps.shape == (4, 8, 8) and found.maps.dtype == torch.float32 and (found.maps >= 0).all()
        grown = found.maps - pipe(digits[:4], output_maps=kind).maps
        assert (grown[:, 5:, 5:].mean(dim=(1, 2)) > grown[:, :3, :3].mean(dim=(1, 2))).all()
        assert_close(found.maps[:1], pipe(changed[:1], output_maps=kind).maps, rtol=1e-3, atol=1e-4)
    assert torch.equal(pipe(changed, output_maps=True).maps, pipe(changed, output_maps="reconstruction").maps)
    plain = pipe(changed)
    assert plain.maps is None and torch.equal(plain.scores, pipe(changed, output_maps=True).scores)
    expected = pipe(changed, output_maps=True).maps
    pipe.calibration.save(tmp_path)
    pipe.calibration = Calibration.load(tmp_path)
    assert torch.equal(pipe(changed, output_maps=True).maps, expected)


def test_without_a_generator_maps_are_of_the_energys_terms(tiny_pipeline, digits):
    pipe = EnergyScoringPipeline(tiny_pipeline.energy_model, tiny_pipeline.scheduler)
    pipe.calibrate(digits, target_fpr=0.1)
    assert pipe.available_maps == ["terms"]
    assert torch.equal(pipe(digits, output_maps=True).maps, pipe(digits, output_maps="terms").maps)
    with pytest.raises(ValueError, match=r"'reconstruction' is not possible .* allow \['terms'\]"):
        pipe(digits, output_maps="reconstruction")


def test_refusals(scorer, dual_scorer, digits, tmp_path):
    with pytest.raises(
        ValueError, match="output_maps needs in-distribution statistics of each pixel: hf-ebm calibrate"
    ):
        scorer(digits, output_maps=True)
    with pytest.raises(ValueError, match=r"output_maps must be True, False or one of .*got 'heat'"):
        scorer(digits, output_maps="heat")
    energy_only = EnergyScoringPipeline(dual_scorer.energy_model)
    with pytest.raises(ValueError, match="needs its generator \\(load_reconstruction=True"):
        energy_only(digits, output_maps=True)
    vectors = EnergyScoringPipeline(MLPEnergyModel(MLPEnergyConfig(num_timesteps=1, hidden_dims=(8,))))
    with pytest.raises(ValueError, match="output_maps must be False for a model of vectors, got True"):
        vectors(torch.zeros(3, 2), output_maps=True)


def test_a_calibration_of_an_earlier_version_has_no_maps(scorer, digits, tmp_path):
    calibration = scorer.calibrate(digits, target_fpr=0.1)
    dataclasses.replace(calibration, pixel_moments={}).save(tmp_path)
    scorer.calibration = Calibration.load(tmp_path)
    assert scorer(digits).is_ood is not None
    with pytest.raises(ValueError, match=r"output_maps=True needs statistics of each pixel.*calibrate again"):
        scorer(digits, output_maps=True)
    calibration.save(tmp_path)
    content = (tmp_path / REFERENCE_FILE).read_bytes()
    (tmp_path / REFERENCE_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged or of another calibration"):
        Calibration.load(tmp_path)
    assert "pixel_moments" not in json.loads((tmp_path / FILE_NAME).read_text())
