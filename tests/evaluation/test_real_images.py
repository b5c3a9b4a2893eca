"""Real images: a subset of a large data set is sampled from all of it, whatever its order."""

import torch
from torch.utils.data import TensorDataset

from hf_ebm.evaluation import feature_extractors as feature_statistics
from hf_ebm.evaluation import samples as real_images
from hf_ebm.evaluation.feature_extractors import FeatureExtractor
from hf_ebm.evaluation.samples import RealImages


def test_what_is_kept_of_a_large_set_is_no_block_of_rows(monkeypatch):
    for module in (feature_statistics, real_images):
        monkeypatch.setattr(module, "MAX_KEPT", 20)
    by_class = torch.arange(100.0).reshape(100, 1, 1, 1) / 100
    images = RealImages(TensorDataset(by_class), {"dataset": "x", "split": "test", "fingerprint": "f"}, 7)
    extractor = FeatureExtractor("mine", "0", "none", lambda x: x.flatten(1))
    found, again, other = (images.statistics(1000, seed, extractor)[0].features.flatten() for seed in (0, 0, 1))
    assert torch.equal(found, again) and not torch.equal(found, other)
    assert len(set(found.tolist())) == 20 and found.min() < 0.2 and found.max() > 0.8
    whole = images.statistics(1000, 0, extractor)[0]
    assert whole.num_images == 100 and abs(whole.total.item() - by_class.sum().item()) < 1e-4
