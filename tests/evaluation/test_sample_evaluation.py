"""Sample evaluation: real images reach the real-vs-real distance; limits, records, invalid input."""

import dataclasses
import json
from importlib import metadata

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import EBMImageProcessor, to_model_range
from hf_ebm.evaluation.feature_extractors import load_extractor
from hf_ebm.evaluation.samples import compare, draw_samples, evaluate_reconstruction, evaluate_samples, state_limits
from hf_ebm.utils.files import to_json


class Copier:
    """A pipeline whose samples are given images, in order."""

    sample_shape = (1, 8, 8)
    tasks = ("generate",)
    image_processor = EBMImageProcessor(8, 1)

    class scheduler:  # noqa: N801
        config = {"num_train_timesteps": 3, "_class_name": "X", "noise": 0.5}  # noqa: RUF012

    def __init__(self, images):
        self.images, self.next, self.asked = images, 0, []

    def __call__(self, batch_size, num_inference_steps, generator, output_type):
        self.asked.append((batch_size, num_inference_steps, output_type))
        self.next += batch_size
        return type("Output", (), {"images": self.images[self.next - batch_size : self.next]})


@pytest.fixture(scope="module")
def digits():
    return load_extractor("digits")


def test_every_set_has_a_bar_of_as_many_steps_as_it_has_batches(digits, tiny_dual_mcmc_pipeline):
    shown = []

    def bar(batches, desc, total):
        shown.append([desc, total, 0])
        for batch in batches:
            shown[-1][2] += 1
            yield batch

    def evaluate():
        options = {"num_images": 41, "num_seeds": 2, "batch_size": 20, "seed": 3, "num_reconstruction_steps": 1}
        return evaluate_samples(tiny_dual_mcmc_pipeline, "digits", digits, progress_bar=bar, **options)

    evaluate()
    expected = [["test images", 18], ["train images", 3], ["samples, seed 3", 3], ["samples, seed 4", 3]]
    expected.append(["reconstructions", 18])
    assert shown == [[*found, found[1]] for found in expected]


def test_real_images_reach_the_real_vs_real_distance(digits):
    pipeline = Copier(to_model_range(load_digits("train")[0]))
    record = evaluate_samples(pipeline, "digits", digits, batch_size=500, num_inference_steps=2)
    assert [number for number, _, _ in pipeline.asked] == [500, 500, 437]
    for name, values in record["metrics"].items():
        assert values["samples"] == pytest.approx(values["floor"]), name
        assert values["std_over_seeds"] is None
    assert set(record["metrics"]) == {
        "frechet_distance",
        "kernel_distance",
        "kernel_distance_std",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    protocol = record["protocol"]
    assert protocol["reference"] | {"fingerprint": ""} == {
        "dataset": "digits",
        "split": "test",
        "fingerprint": "",
        "num_images": 360,
    }
    assert protocol["floor"]["split"] == "train" and protocol["num_images"] == 1437
    assert protocol["sampler"]["settings"] == {"num_train_timesteps": 3, "noise": 0.5}
    assert protocol["sampler"]["num_inference_steps"] == 2 and protocol["software"]["torch"] == metadata.version(
        "torch"
    )
    assert protocol["feature_extractor"]["weights_sha256"] == digits.weights_sha256
    calls = []
    counting = dataclasses.replace(digits, features=lambda x: calls.append(len(x)) or digits.features(x))
    again = evaluate_samples(Copier(to_model_range(load_digits("train")[0])), "digits", counting, batch_size=500)
    assert calls == [360, 500, 500, 437, 500, 500, 437] and again["metrics"] == record["metrics"]


def test_figures_over_seeds_are_means_of_those_of_each(tiny_pipeline, digits):
    def evaluate(**kwargs):
        return evaluate_samples(tiny_pipeline, "digits", digits, num_images=40, **kwargs)

    both, single = evaluate(num_seeds=2, seed=3), [evaluate(seed=3), evaluate(seed=4)]
    assert both["protocol"]["num_seeds"] == 2
    for name in ("frechet_distance", "precision", "coverage"):  # the kernel's subsets go by the first seed
        a, b = (record["metrics"][name]["samples"] for record in single)
        assert both["metrics"][name]["samples"] == pytest.approx((a + b) / 2)
        assert both["metrics"][name]["std_over_seeds"] == pytest.approx(abs(a - b) / 2**0.5)
    assert both["metrics"]["frechet_distance"]["std_over_seeds"] > 0


def test_the_inception_score_needs_the_standard_network(digits):
    calls = []
    standard = dataclasses.replace(digits, logits=lambda features: calls.append(features.shape) or features[:, :10])
    record = evaluate_samples(Copier(to_model_range(load_digits("train")[0])), "digits", standard, num_images=30)
    assert record["protocol"]["feature_extractor"]["is_standard_inception"] and calls == [(30, 64), (30, 64)]
    found = record["metrics"]["inception_score"]
    assert found["samples"] >= 1 and found["floor"] >= 1


def test_bad_samples_are_worse_in_every_metric(digits):
    noise = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    record = evaluate_samples(Copier(noise), "digits", digits, num_images=300)
    assert record["protocol"]["floor"]["num_images"] == 300
    for name, values in record["metrics"].items():
        if name in ("kernel_distance", "frechet_distance"):
            assert values["samples"] > 10 * abs(values["floor"])
        elif name != "kernel_distance_std":
            assert values["samples"] < 0.5 * values["floor"]


def test_reconstructions_get_better_by_the_z_chain(tiny_dual_mcmc_pipeline, digits):
    record = evaluate_samples(tiny_dual_mcmc_pipeline, "digits", digits, num_images=20, num_reconstruction_steps=4)
    found = record["reconstruction"]
    assert found["num_steps"] == 4 and found["num_images"] == 360
    assert found["z_chain"]["mse"] < found["inference_model"]["mse"]
    images = to_model_range(load_digits("test")[0])[:256]
    once = tiny_dual_mcmc_pipeline.reconstruct(
        images / 2 + 0.5, 0, generator=torch.Generator().manual_seed(0), output_type="latent"
    ).images
    rest = to_model_range(load_digits("test")[0])[256:]
    last = tiny_dual_mcmc_pipeline.reconstruct(
        rest / 2 + 0.5, 0, generator=torch.Generator().manual_seed(1), output_type="latent"
    ).images
    expected = torch.cat([(once - images).square(), (last - rest).square()]).mean().item()
    assert found["inference_model"]["mse"] == pytest.approx(expected, rel=1e-5)


def test_perfect_reconstructions_are_json():
    class Perfect:
        class latent_scheduler:  # noqa: N801
            class config:  # noqa: N801
                num_train_timesteps = 3

        def reconstruct(self, images, steps, generator, output_type):
            return type("Output", (), {"images": images * 2 - 1})

    found = evaluate_reconstruction(Perfect(), iter([to_model_range(load_digits("test")[0])[:4]]), None, 0)
    assert found["z_chain"]["psnr"] is None and found["z_chain"]["mse"] == 0
    assert json.loads(to_json(found)) == found
    with pytest.raises(ValueError, match="not finite"):
        to_json({"psnr": float("inf")})


def test_samples_are_those_of_the_seed(tiny_pipeline):
    first, again, other = (torch.cat(list(draw_samples(tiny_pipeline, 5, 2, None, seed))) for seed in (1, 1, 2))
    assert first.shape == (5, 1, 8, 8) and torch.equal(first, again) and not torch.equal(first, other)


def test_limits_are_stated():
    from hf_ebm.evaluation.feature_extractors import FeatureStatistics

    few = FeatureStatistics.of([torch.randn(30, 64)], lambda x: x)
    many = FeatureStatistics.of([torch.randn(90, 64)], lambda x: x)
    assert "30 images cannot fill the covariance of 64 features" in state_limits(many, few)[0]
    assert len(state_limits(many, many)) == 0 and set(compare(few, many, load_extractor("digits"))) >= {
        "frechet_distance",
        "coverage",
    }


def folder_of_images(folder, splits):
    """An image folder with one folder for each split."""
    random = np.random.default_rng(0)
    for split, number in splits.items():
        (folder / split).mkdir(parents=True)
        for index in range(number):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / split / f"{index}.png")
    return str(folder)


def test_a_folder_without_the_other_split_warns_of_the_missing_real_vs_real_distance(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    name = folder_of_images(tmp_path / "images", {"test": 25})
    record = evaluate_samples(Copier(to_model_range(load_digits("train")[0])), name, digits)
    assert record["protocol"]["num_images"] == 25 and record["protocol"]["floor"] is None
    assert record["metrics"]["precision"]["floor"] is None
    assert "no real-vs-real distance: the data set has no split 'train'" in record["limits"][0]
    assert record["protocol"]["reference"]["dataset"] == "images" and str(tmp_path) not in to_json(record)


def test_mistakes(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pipeline = Copier(to_model_range(load_digits("train")[0]))
    with pytest.raises(ValueError, match="num_images must be at least 20 images"):
        evaluate_samples(pipeline, "digits", digits, num_images=3)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate_samples(pipeline, "digits", digits, batch_size=0)
    with pytest.raises(ValueError, match="'test' must be at least 20 images for these statistics, got 4"):
        evaluate_samples(pipeline, folder_of_images(tmp_path / "few", {"test": 4, "train": 30}), digits)
    name = folder_of_images(tmp_path / "images", {"test": 25, "train": 25})
    (tmp_path / "images" / "test" / "7.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(ValueError, match=r"image \d+ of column 'image' \(.*7\.png\) cannot be read"):
        evaluate_samples(pipeline, name, digits)
    with pytest.raises(ValueError, match=r"^image \d+ of column 'image' \(.*7\.png\) cannot be read"):
        evaluate_samples(pipeline, name, digits, num_workers=1)
