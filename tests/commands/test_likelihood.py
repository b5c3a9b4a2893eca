"""hf-ebm likelihood: the bracket of log Z, for a model that has the chain it needs."""

import json

import pytest

from hf_ebm.cli import main


def test_likelihood_prints_the_bracket(folder, capsys):
    arguments = ["likelihood", "--model", folder, "--dataset", "digits", "--max-images", "10", "--num-chains", "4"]
    arguments += ["--num-temperatures", "4", "--equilibration-steps", "2"]
    main([*arguments, "--num-conditionals", "1", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["log_z"]["gap"] == pytest.approx(record["log_z"]["upper"] - record["log_z"]["lower"])
    assert record["num_held_out"] == 10 and record["num_levels"] == 17 and len(record["chain"]["steps"]) == 4
    main(arguments)
    printed = capsys.readouterr().out
    assert f"at least {record['log_z']['lower']:.2f}" in printed and "bits/dim" in printed  # the same seed


def test_conditionals_of_a_model_without_a_chain_are_refused_at_once(dual_folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_ebm.scoring.model_likelihood.measure_likelihood", None)
    with pytest.raises(SystemExit):
        main(["likelihood", "--model", dual_folder, "--dataset", "digits", "--num-conditionals", "2"])
    assert "--num-conditionals: pipeline must be a DDAEBMPipeline" in capsys.readouterr().err
