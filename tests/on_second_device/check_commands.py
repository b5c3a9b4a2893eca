"""Commands with ``--device`` on the second device give the CPU's results. Chains are short, as it is slow."""

import json

import pytest
import second_device  # noqa: F401 (makes the device)

from hf_ebm.cli.main import main

FEW = ["--dataset", "digits", "--max-images", "20"]


def outputs(capsys, command, *arguments):
    """What a command prints as JSON on the CPU and there."""
    found = []
    for device in ("cpu", "second"):
        main([command, *arguments, "--device", device, "--json"])
        found.append(json.loads(capsys.readouterr().out))
    return found


def test_likelihood(tiny_dual_mcmc_pipeline, tmp_path, capsys):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path)
    chains = ["--num-chains", "4", "--num-temperatures", "10", "--equilibration-steps", "5"]
    here, there = outputs(capsys, "likelihood", "--model", str(tmp_path), *FEW, *chains)
    assert there["log_z"]["lower"] == pytest.approx(here["log_z"]["lower"], abs=0.01)
    assert there["log_z"]["upper"] == pytest.approx(here["log_z"]["upper"], abs=0.01)
