"""Saving and loading DualMCMCPipeline: equal results in a new process, files, variants, shared components."""

import json

import numpy as np
import torch
from dual_mcmc_chains import MASK, SAMPLERS, seeded
from fresh_process import run_in_fresh_process

from hf_ebm import DualMCMCPipeline


def test_same_results_in_a_fresh_process_with_any_sampler(tiny_dual_mcmc_pipeline, tmp_path):
    """The classes of all samplers are found there too."""
    pipe = tiny_dual_mcmc_pipeline
    expected, pairs = [], [SAMPLERS[i : i + 2] for i in (0, 2, 4)]
    for sampler, latent_sampler in pairs:
        pipe.scheduler = sampler.from_config(pipe.scheduler.config)
        pipe.latent_scheduler = latent_sampler.from_config(pipe.latent_scheduler.config)
        pipe.save_pretrained(tmp_path / sampler.__name__)
        expected.append(pipe(batch_size=2, generator=seeded(5), output_type="pt").images)
        expected.append(pipe.reconstruct(expected[0], generator=seeded(5), output_type="pt").images)
    expected.append(pipe.score(expected[0]).energies)
    code = (
        "import sys, torch; from hf_ebm import DualMCMCPipeline\n"
        "found, g = [], lambda: torch.Generator().manual_seed(5)\n"
        "for name in sys.argv[2:]:\n"
        "    pipe = DualMCMCPipeline.from_pretrained(sys.argv[1] + '/' + name)\n"
        "    found.append(pipe(batch_size=2, generator=g(), output_type='pt').images)\n"
        "    found.append(pipe.reconstruct(found[0], generator=g(), output_type='pt').images)\n"
        "torch.save([*found, pipe.score(found[0]).energies], sys.argv[1] + '/out.pt')"
    )
    names = [sampler.__name__ for sampler, _ in pairs]
    run_in_fresh_process(code, str(tmp_path), *names)
    found = torch.load(tmp_path / "out.pt")
    assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_saved_files_are_safetensors_and_module_paths_are_the_format(tiny_dual_mcmc_pipeline, tmp_path):
    """Golden: these paths are in every saved repository; renaming a module would orphan them."""
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DualMCMCPipeline"
    assert {key: value for key, value in index.items() if not key.startswith("_")} == {
        "generator_model": ["hf_ebm.models.resnet_generator", "ResNetGeneratorModel"],
        "energy_model": ["hf_ebm.models.resnet_energy", "ResNetEnergyModel"],
        "image_processor": ["hf_ebm.data.image_processor", "EBMImageProcessor"],
        "inference_model": ["hf_ebm.models.conv_inference", "ConvInferenceModel"],
        "scheduler": ["hf_ebm.schedulers.scheduling_langevin", "LangevinScheduler"],
        "latent_scheduler": ["hf_ebm.schedulers.scheduling_langevin", "LangevinScheduler"],
    }
    weights = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".json", ".md", ".py")]
    assert weights and all(path.suffix == ".safetensors" for path in weights)


def test_variant_dtype_and_missing_components(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path, variant="full")
    pipe = DualMCMCPipeline.from_pretrained(tmp_path, variant="full", dtype=torch.bfloat16)
    assert pipe.energy_model.dtype == pipe.generator_model.dtype == pipe.inference_model.dtype == torch.bfloat16
    images = pipe(2, generator=seeded(), output_type="np").images
    assert images.dtype == np.float32 and pipe.score(images).energies.dtype == torch.float32
    full = tiny_dual_mcmc_pipeline(2, generator=seeded(), output_type="np").images
    assert 0 < np.abs(images - full).max() < 0.05  # the same chain, the networks' rounding apart
    kept = torch.from_numpy(images).permute(0, 3, 1, 2)
    filled = pipe.inpaint(kept, MASK, output_type="pt").images
    torch.testing.assert_close(filled[..., :4], kept[..., :4], rtol=0, atol=1e-7)
    assert len(pipe.reconstruct(images).images) == len(pipe.interpolate(kept[:1], kept[1:], num_frames=2).images) == 2
    missing = {"energy_model": None, "inference_model": None, "latent_scheduler": None, "scheduler": None}
    bare = DualMCMCPipeline.from_pretrained(tmp_path, variant="full", **missing)
    assert len(bare(2).images) == 2
    bare.save_pretrained(tmp_path / "bare")
    again = DualMCMCPipeline.from_pretrained(tmp_path / "bare")
    assert again.energy_model is again.inference_model is again.latent_scheduler is again.scheduler is None
