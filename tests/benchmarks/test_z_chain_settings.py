"""Settings of the z-chain: a row each, the inference model's own error the same in all."""

import sys

import pytest


@pytest.fixture
def run(import_benchmark, monkeypatch, tmp_path, tiny_dual_mcmc_pipeline):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path)
    benchmark = import_benchmark("z_chain_settings")

    def call(*arguments):
        options = ["--model", str(tmp_path), "--dataset", "digits", "--max-images", "12", *arguments]
        monkeypatch.setattr(sys, "argv", ["z_chain_settings.py", *options])
        benchmark.main()

    return call


def test_a_row_for_each_setting(run, capsys):
    run("--set", "step_size=0.01 noise_std=1e-6", "--num-steps", "1", "4")
    header, _, shipped, changed = capsys.readouterr().out.splitlines()
    assert header == "| z-chain | inference model alone | after 1 steps | after 4 steps |"
    shipped, changed = ([cell.strip() for cell in line.strip("|").split("|")] for line in (shipped, changed))
    assert shipped[0] == "as shipped" and shipped[1] == changed[1] and shipped[2:] != changed[2:]
    assert float(changed[3]) <= float(changed[2]) <= float(changed[1])  # so small a step leads downhill


def test_what_is_no_number_of_the_scheduler_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--set", "stepsize=2")
    assert "--set must name a number of the scheduler's" in capsys.readouterr().err
