"""Run by .ci/run in an environment with only the wheel: load a run folder, sample, score, features."""

import sys

import torch

import hf_ebm
from hf_ebm import DDAEBMPipeline
from hf_ebm.evaluation.feature_extractors import digits_extractor

assert "site-packages" in hf_ebm.__file__, hf_ebm.__file__
pipe = DDAEBMPipeline.from_pretrained(sys.argv[1])
images = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
energies = pipe.score(images).energies
assert images.shape == (2, 1, 8, 8) and energies.shape == (2,) and torch.isfinite(energies).all()
assert digits_extractor()(images * 2 - 1).shape == (2, 64)  # of the shipped weights
print("wheel:", hf_ebm.__file__, tuple(images.shape), energies.tolist())
