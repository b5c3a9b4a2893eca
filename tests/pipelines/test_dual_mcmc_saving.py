"""DualMCMCPipeline computes the same in a new process, and nearly the same in bfloat16."""

import numpy as np
import torch
from dual_mcmc_chains import MASK, SAMPLERS, seeded
from fresh_process import run_in_fresh_process


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


def test_in_bfloat16_samples_are_nearly_the_same_and_known_pixels_exactly(tiny_dual_mcmc_pipeline):
    full = tiny_dual_mcmc_pipeline(2, generator=seeded(), output_type="np").images
    pipe = tiny_dual_mcmc_pipeline.to(torch.bfloat16)
    images = pipe(2, generator=seeded(), output_type="np").images
    assert 0 < np.abs(images - full).max() < 0.05  # the same chain, the networks' rounding apart
    kept = torch.from_numpy(images).permute(0, 3, 1, 2)
    filled = pipe.inpaint(kept, MASK, output_type="pt").images
    torch.testing.assert_close(filled[..., :4], kept[..., :4], rtol=0, atol=1e-7)
    assert len(pipe.reconstruct(images).images) == len(pipe.interpolate(kept[:1], kept[1:], num_frames=2).images) == 2
