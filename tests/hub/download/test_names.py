"""Names of pipelines: invalid Hub ids and revisions are refused without a request, and similar folders suggested."""

import re
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from hf_ebm import DDAEBMPipeline, UNetEnergyModel, UNetGeneratorModel
from hf_ebm.hub.download import download_pipeline, meant
from hf_ebm.hub.upload import push_folder
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


@pytest.mark.parametrize("prefix", ["", "./", "runs/"])
def test_a_mistyped_folder_is_answered_with_a_near_one(prefix, tmp_path, monkeypatch, caplog):
    for name in ("ddaebm-digits", "another"):
        (tmp_path / prefix / name).mkdir(parents=True)
    (tmp_path / prefix / "ddaebm-digit").touch()  # is no folder
    monkeypatch.chdir(tmp_path)

    def unreachable(*args, **kwargs):
        assert "looking for it on the Hub" in caplog.text
        raise LocalEntryNotFoundError("no such entry") from ConnectionError("Name or service not known")

    monkeypatch.setattr("hf_ebm.hub.download.hf_hub_download", unreachable)
    with pytest.raises(OSError, match="is not a local folder") as caught:
        DDAEBMPipeline.from_pretrained(f"{prefix}ddaebm-digitz")
    assert f" Did you mean {Path(prefix) / 'ddaebm-digits'}?" in str(caught.value)
    assert "Did you mean" not in caplog.text  # said once
    assert ("could not be reached (is there a network?)" in str(caught.value)) is (prefix != "./")


def test_a_folder_of_another_parent_is_found(tmp_path, monkeypatch):
    (tmp_path / "outputs" / "ddaebm-digits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert meant("output/ddaebm-digits") == f" Did you mean {Path('outputs', 'ddaebm-digits')}?"
    assert meant("output/another") == meant("user/ddaebm-digits") == ""
    with pytest.raises(ValueError, match=r"give that of a run, or of a saved pipeline\. Did you mean outputs"):
        push_folder("output/ddaebm-digits", "user/x")


@pytest.mark.parametrize("name", ["runs/nothing", "runs/deeper/nothing"])
def test_a_folder_that_is_not_there_is_answered_with_those_beside_it(name, tmp_path, monkeypatch):
    for number in range(7):
        folder = (tmp_path / name).parent / f"m{number}"
        folder.mkdir(parents=True)
        (folder / ("config.json" if number == 2 else "model_index.json")).touch()
    (tmp_path / name).parent.joinpath("a-folder-of-scores").mkdir()
    monkeypatch.chdir(tmp_path)

    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no such entry") from ConnectionError("Name or service not known")

    monkeypatch.setattr("hf_ebm.hub.download.hf_hub_download", unreachable)
    with pytest.raises(OSError, match="is not a local folder") as caught:
        DDAEBMPipeline.from_pretrained(name)
    assert f" The folder {Path(name).parent} here has m0, m1, m2, m3, m4 and others." in str(caught.value)
    with pytest.raises(OSError, match="is not a local folder") as caught:
        DDAEBMPipeline.from_pretrained("somebody/model")
    assert "The folder" not in str(caught.value)
