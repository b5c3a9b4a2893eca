"""The file format: module paths in saved pipelines (`model_index.json`), which never change."""

import importlib

import pytest

GOLDEN = {
    "hf_ebm.data.image_processor": ["EBMImageProcessor"],
    "hf_ebm.models.conv_inference": ["ConvInferenceModel"],
    "hf_ebm.models.composed_energy": ["ComposedEnergyModel"],
    "hf_ebm.models.mlp_energy": ["MLPEnergyModel"],
    "hf_ebm.models.mlp_generator": ["MLPGeneratorModel"],
    "hf_ebm.models.mlp_inference": ["MLPInferenceModel"],
    "hf_ebm.models.mlp_latent_generator": ["MLPLatentGeneratorModel"],
    "hf_ebm.models.mlp_pair_inference": ["MLPPairInferenceModel"],
    "hf_ebm.models.pair_inference": ["PairInferenceModel"],
    "hf_ebm.models.resnet_energy": ["ResNetEnergyModel"],
    "hf_ebm.models.resnet_generator": ["ResNetGeneratorModel"],
    "hf_ebm.models.unet_energy": ["UNetEnergyModel"],
    "hf_ebm.models.unet_generator": ["UNetGeneratorModel"],
    "hf_ebm.pipelines.pipeline_ddaebm": ["DDAEBMPipeline"],
    "hf_ebm.pipelines.pipeline_dual_mcmc": ["DualMCMCPipeline"],
    "hf_ebm.pipelines.pipeline_energy_scoring": ["EnergyScoringPipeline"],
    "hf_ebm.schedulers.scheduling_annealed_langevin": ["AnnealedLangevinScheduler"],
    "hf_ebm.schedulers.scheduling_ddaebm": ["DDAEBMScheduler"],
    "hf_ebm.schedulers.scheduling_hmc": ["HMCScheduler"],
    "hf_ebm.schedulers.scheduling_langevin": ["LangevinScheduler"],
    "hf_ebm.schedulers.scheduling_mala": ["MALAScheduler"],
    "hf_ebm.schedulers.scheduling_preconditioned_langevin": ["PreconditionedLangevinScheduler"],
    "hf_ebm.schedulers.scheduling_replica_exchange": ["ReplicaExchangeScheduler"],
}


@pytest.mark.parametrize("module", GOLDEN)
def test_saved_classes_stay_at_their_module_paths(module):
    for name in GOLDEN[module]:
        found = getattr(importlib.import_module(module), name)
        assert found.__module__ == module


def test_every_exported_class_is_held():
    import hf_ebm

    held = {name for names in GOLDEN.values() for name in names}
    exported = {name for name in hf_ebm.__all__ if name.endswith(("Model", "Pipeline", "Scheduler", "Processor"))}
    assert exported == held


@pytest.mark.parametrize("name", ["tiny_pipeline", "tiny_dual_mcmc_pipeline"])
def test_a_saved_pipeline_names_these_modules_and_has_safetensors_alone(name, request, tmp_path):
    import json

    pipeline = request.getfixturevalue(name)
    pipeline.save_pretrained(tmp_path)
    kind = type(pipeline).__name__
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == kind
    assert (tmp_path / "pipeline.py").read_text().endswith(f"import {kind} as Pipeline  # noqa: F401\n")
    others = {path.suffix for path in tmp_path.rglob("*") if path.is_file()} - {".json", ".md", ".py"}
    assert others == {".safetensors"}
    components = [value for key, value in index.items() if not key.startswith("_") and value[0] is not None]
    assert components and all(kind in GOLDEN[module] for module, kind in components)
