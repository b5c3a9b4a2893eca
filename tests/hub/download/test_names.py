"""Names of pipelines: invalid Hub ids and revisions are errors without a request; similar folders are suggested."""

import re

import pytest

from hf_ebm import DDAEBMPipeline, UNetEnergyModel, UNetGeneratorModel
from hf_ebm.hub.download import download_pipeline
from hf_ebm.utils.files import expand_home


def test_a_revision_does_not_lead_out_of_the_cache(tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("0" * 40)
    for revision in (str(outside), "../../precious"):
        with pytest.raises(ValueError, match="revision must be the name of a branch"):
            download_pipeline("user/x", revision=revision, cache_dir=tmp_path)
    assert outside.read_text() == "0" * 40


@pytest.mark.parametrize("name", ["outputs/digits/new", "./mistyped", "../x", "/no/such", "~/x", "a\\b", "digits/"])
def test_the_hub_is_not_asked_for_what_can_be_no_id(name, monkeypatch):
    monkeypatch.setattr("hf_ebm.hub.download.hf_hub_download", None)
    named = re.escape(repr(expand_home(name)))
    for loads in (DDAEBMPipeline, UNetGeneratorModel, UNetEnergyModel):
        with pytest.raises(OSError, match=f"{named} is not a local folder, and cannot be a Hub id"):
            loads.from_pretrained(name)
