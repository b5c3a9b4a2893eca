"""Converting the authors' checkpoints of Dual-MCMC Teaching: the same outputs, a card, and files that are refused."""

import json
import os
import re

import pytest
import torch
from reference_networks import reference_checkpoint, reference_tensors
from torch.testing import assert_close

from hf_ebm import DualMCMCPipeline
from hf_ebm.cli.main import main
from hf_ebm.hub.model_card import refresh_card
from hf_ebm.hub.upload import repository_files
from hf_ebm.pipelines.convert_dual_mcmc import convert_dual_mcmc, convert_to_folder


class Code:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture
def checkpoint():
    return reference_checkpoint("cifar10")


def outputs(pipe, data):
    """Images, energies, means and log-variances on the reference's inputs, and the reference's."""
    generator, energy, inference = (
        reference_tensors(f"{data}_{name}") for name in ("generator", "energy", "inference")
    )
    images = pipe.generator_model(generator["input"]).sample[: len(generator["output_eval"])]
    ours = (images, pipe.energy_model(energy["input"]).energy, *pipe.inference_model(inference["input"]).to_tuple())
    return ours, (generator["output_eval"], energy["output_eval"][:, 0], inference["mean"], inference["logvar"])


@pytest.mark.parametrize(("data", "step_size"), [("cifar10", 0.5), ("celeba64", 0.3)])
def test_the_command_writes_a_pipeline_with_the_authors_outputs(tmp_path, data, step_size, capsys):
    # a file holds more than the networks
    torch.save({**reference_checkpoint(data), "epoch": 299, "optE": {"state": {}}}, tmp_path / "authors.pth")
    folder = tmp_path / "new" / "converted"
    main(["convert", "dual-mcmc", str(tmp_path / "authors.pth"), "--data", data, "--output", str(folder)])
    assert "no licence" in capsys.readouterr().out
    assert sorted(path.name for path in folder.parent.iterdir()) == ["converted"]

    pipe = DualMCMCPipeline.from_pretrained(folder)
    for ours, theirs in zip(*outputs(pipe, data), strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (pipe.scheduler.config.step_size, pipe.scheduler.config.noise_std) == (step_size, 0.001)
    assert pipe.latent_scheduler.config.step_size == 0.1 and len(pipe.latent_scheduler) == 10
    pipe.save_pretrained(tmp_path / "again")
    again = DualMCMCPipeline.from_pretrained(tmp_path / "again")
    for first, second in zip(outputs(pipe, data)[0], outputs(again, data)[0], strict=True):
        assert torch.equal(first, second)
    samples = pipe(2, num_inference_steps=1, output_type="pt").images
    assert pipe.score(samples).energies.shape == (2,)


def test_the_card_names_the_source_and_that_there_is_no_licence(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "authors.pth")
    folder = convert_to_folder(tmp_path / "authors.pth", "cifar10", tmp_path / "converted")
    record = json.loads((folder / "conversion.json").read_text())
    assert record["checkpoint"] == "authors.pth" and len(record["sha256"]) == 64 and record["license"] is None
    card = (folder / "README.md").read_text()
    assert "# converted" in card and "`authors.pth`" in card and record["sha256"] in card and "CIFAR-10" in card
    assert "state no licence" in card and "have no licence from their authors" in card
    assert "license:" not in card and str(tmp_path) not in card
    assert refresh_card(folder) and (folder / "README.md").read_text() == card
    files = repository_files(folder, "user/converted")
    assert "conversion.json" in files and b"`authors.pth`" in files["README.md"]
    other = repository_files(folder, "user/converted", "other", "with-their-permission")
    assert b"with-their-permission" in other["README.md"] and b"have no licence" not in other["README.md"]


def changed(checkpoint, name, key, value):
    """The checkpoint with one tensor replaced, or removed if `value` is None."""
    state = {**checkpoint[name], key: value}
    return {**checkpoint, name: {key: value for key, value in state.items() if value is not None}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"model": c["netG"]}, "must hold the state dicts netG, netE, netI.* lacks netG and holds model"),
        (lambda c: {"netG": c["netG"], "netE": c["netE"]}, "lacks netI"),
        (lambda c: {}, "holds nothing"),
        (lambda c: {**c, "netE": [1]}, "netE must be a state dict, got list"),
        (lambda c: changed(c, "netE", "epoch", 3), "netE must map names to tensors, got 'epoch': int"),
        (lambda c: changed(c, "netG", "bn_5.bias", None), r"netG .* 1 missing \(first: 'bn_5.bias'\)"),
        (lambda c: changed(c, "netG", "block3.conv1.weight", None), "netG lacks 'block3.conv1.weight'"),
        (lambda c: changed(c, "netI", "conv52.bias", None), "netI lacks 'conv52.bias'"),
        (lambda c: changed(c, "netI", "conv52.bias", torch.zeros(2)), "must have one shape"),
        (lambda c: changed(c, "netI", "main.0.bias", torch.zeros(4)), r"1 unknown \(first: 'main.0.bias'\)"),
        (lambda c: changed(c, "netE", "block2.sc.weight_u", torch.zeros(3)), r"\(3,\) instead of \(8,\)"),
        (lambda c: changed(c, "netE", "block2.conv1.weight_orig", torch.zeros(8)), "must have 4 dimensions"),
        (lambda c: changed(c, "netI", "main.2.weight", torch.zeros(0, 4, 4, 4)), "none of size 0"),
        (lambda c: changed(c, "netG", "lin_1.bias", torch.full((128,), torch.nan)), "'lin_1.bias' .* not finite"),
        (lambda c: reference_checkpoint("celeba64"), "netG, netE, netI .* layers of celeba64; .* data=celeba64"),
        (lambda c: {**c, "netE": reference_checkpoint("celeba64")["netE"]}, "netE of the checkpoint .* celeba64"),
    ],
)
def test_checkpoints_that_are_not_the_authors_or_do_not_fit(checkpoint, change, message):
    with pytest.raises(ValueError, match=message):
        convert_dual_mcmc(change(checkpoint), "cifar10")
    with pytest.raises(ValueError, match="data must be one of"):
        convert_dual_mcmc(checkpoint, "lsun")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"netG": Code()}, r"holds Python objects \(posix.mkdir\).*weights_only=False.*'netG', 'netE', 'netI'"),
        ([1, 2], "must hold a dict with netG, netE, netI, got list"),
        (b"not a checkpoint at all", "is no file of torch.save, or is damaged"),
        (b"", "is no file of torch.save, or is damaged"),
        (None, "No such file"),
    ],
    ids=["code", "list", "text", "empty", "missing"],
)
def test_files_that_cannot_be_read(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "c.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "c.pth")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["convert", "dual-mcmc", "c.pth", "--data", "cifar10", "--output", "out"])
    error = capsys.readouterr().err
    assert ended.value.code and error.startswith("hf-ebm: error: ")
    assert re.search(message, error) and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before  # neither a folder, nor what the code would have made


def test_a_cut_off_file(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "c.pth")
    whole = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="or is damaged"):
        convert_dual_mcmc(tmp_path / "c.pth", "cifar10")


def test_an_existing_output_stays_as_it_is(tmp_path, checkpoint, monkeypatch):
    torch.save(checkpoint, tmp_path / "c.pth")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"output .*out exists; choose another folder"):
        convert_to_folder(tmp_path / "c.pth", "cifar10", folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_ebm.pipelines.convert_dual_mcmc.write_card", full)
    with pytest.raises(OSError, match="other cannot be written: No space left on device"):
        convert_to_folder(tmp_path / "c.pth", "cifar10", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "out"]
