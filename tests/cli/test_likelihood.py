"""hf-ebm likelihood: the bracket of log Z, for models that support it."""

import json

import pytest

from hf_ebm.cli.likelihood import format_record
from hf_ebm.cli.main import main


def test_likelihood_prints_the_bracket(folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_ebm.likelihood.ais.ADAPTATION_CHAINS", 8)
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
    monkeypatch.setattr("hf_ebm.likelihood.evaluate.evaluate_likelihood", None)
    with pytest.raises(SystemExit):
        main(["likelihood", "--model", dual_folder, "--dataset", "digits", "--num-conditionals", "2"])
    assert "--num-conditionals: pipeline must" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gap", "forward", "reverse", "said"),
    [
        (0.5, 40.0, 30.0, []),
        (-0.5, 40.0, 30.0, ["NO BRACKET"]),
        (0.5, 40.0, 1.25, ["1.2 effective samples are too few"]),
        (-0.5, 1.0, 30.0, ["NO BRACKET", "1.0 effective samples are too few"]),
    ],
)
def test_an_invalid_bracket_and_few_effective_samples_are_reported(gap, forward, reverse, said):
    ends = {"at_log_z_lower": -3.0, "at_log_z_upper": -3.0 - gap}
    log_z = {"lower": 2.0, "upper": 2.0 + gap, "gap": gap}
    log_z |= {"effective_sample_size": forward, "effective_sample_size_reverse": reverse}
    lines = format_record({"density": "exp(-E)", "temperature": 1.0, "log_z": log_z, "log_likelihood": ends}).split(
        "\n"
    )
    warnings = lines[3:-1]
    assert len(warnings) == len(said)
    assert all(line.startswith(beginning) for line, beginning in zip(warnings, said, strict=True))
