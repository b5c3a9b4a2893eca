"""hf-ebm eval-ood and evaluate write metrics with their protocol, which the card of a run folder includes."""

import json
import sys

import pytest

from hf_ebm.cli.main import main


def test_eval_ood_writes_table_protocol_and_plots(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_ebm.utils.logging.DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    out = tmp_path / "ood"
    arguments = ["eval-ood", "--model", folder, "--id", "digits", "--ood", "noise,constant", "--output", str(out)]
    arguments += ["--max-images", "40", "--resamples", "10", "--scores", "energy,typicality"]
    main([*arguments, "--metrics", "auroc,fpr95"])
    record = json.loads((out / "ood.json").read_text())
    assert set(record["metrics"]) >= {"energy", "typicality", "pixel_gaussian", "nearest_neighbour"}
    assert set(record["metrics"]["energy"]) == {"noise", "constant", "mean"}
    protocol = record["protocol"]
    assert protocol["in_distribution"]["split"] == "test" and protocol["in_distribution"]["num_images"] == 40
    assert protocol["statistics_and_baselines"]["split"] == "train" and protocol["seed"] == 0
    assert protocol["scores"]["of_the_model"] == ["energy", "typicality"] and "8x8" in protocol["preprocessing"]
    assert set(protocol["autoencoder"]) == {"epochs", "converged"}
    assert protocol["ood_sets"]["noise"]["num_images"] == 40 and "torch" in protocol["software"]
    assert protocol["model"] == "model" and str(tmp_path) not in (out / "ood.json").read_text()
    assert {path.name for path in out.iterdir()} == {"ood.json", "roc.png", "histograms.png"}
    printed, progress = capsys.readouterr()
    assert printed.count("pixel_gaussian") == 2 and "%|" not in printed
    assert printed.startswith("AUROC [95 % interval]") and "\n\nFPR95 [95 % interval]" in printed
    assert all(f"{title}:" in progress for title in ("fitting the baselines", "scoring the sets", "intervals"))


def test_an_unknown_ood_set_is_reported_with_near_names(folder, tmp_path, capsys, monkeypatch):
    arguments = ["eval-ood", "--model", folder, "--id", "digits", "--output", str(tmp_path)]
    arguments += ["--max-images", "20", "--resamples", "20"]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--ood", str(tmp_path / "zzz")])
    assert "For --ood: synthetic OOD sets are rotated, " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--metrics", "auroc,fpr"])
    assert "--metrics: there is no metric 'fpr'; did you mean fpr95" in capsys.readouterr().err
    monkeypatch.setattr("datasets.load_dataset", None)  # the Hub is not asked for a near name
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--ood", "nois"])
    assert "--ood: 'nois' is no synthetic OOD set; did you mean noise?" in capsys.readouterr().err


def test_a_misspelt_extractor_is_an_error_before_requests_to_the_hub(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.AutoModel", None)
    arguments = ["evaluate", "--model", folder, "--dataset", "digits", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--feature-extractor", "incepton"])
    assert "there is no feature extractor 'incepton'; did you mean inception?" in capsys.readouterr().err


def test_evaluate_writes_figures_and_protocol(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_ebm.utils.logging.DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    arguments = ["evaluate", "--model", folder, "--dataset", "digits", "--num-images", "24", "--seed", "3"]
    arguments += ["--output", str(tmp_path / "run")]
    main(arguments)
    printed, progress = capsys.readouterr()
    assert all(f"{title}:" in progress for title in ("test images", "train images", "samples, seed 3"))
    assert (
        "%|" not in printed
        and "| Frechet distance | " in printed
        and "coverage" in printed
        and "real vs real: 24 images of `train`" in printed
    )
    main([*arguments, "--json"])
    record = json.loads((tmp_path / "run" / "evaluate.json").read_text())
    assert json.loads(capsys.readouterr().out) == record
    kernel = record["metrics"]["kernel_distance"]
    assert (min(kernel["samples"], kernel["floor"]) < 0) is ("it can be below 0" in printed)
    assert record["protocol"]["model"] == "model" and record["protocol"]["seed"] == 3 and record["seconds"] > 0
    assert any("24 images cannot fill the covariance" in limit for limit in record["limits"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["evaluate.json"]


EVALUATIONS = {
    "evaluate": "--dataset digits --num-images 24",
    "eval-ood": "--id digits --ood noise --max-images 20 --resamples 5 --no-baselines --scores energy",
}


@pytest.mark.parametrize("command", EVALUATIONS)
def test_the_card_of_a_run_folder_takes_the_figures_over_unless_it_is_somebodys_own(command, folder, tmp_path, capsys):
    from huggingface_hub import ModelCard

    from hf_ebm.hub.model_card import GENERATED, write_card

    card = write_card(tmp_path / "model")
    arguments = [command, "--model", folder, *EVALUATIONS[command].split(), "--output", folder]
    main([*arguments, "--json"])
    record, written = json.loads(capsys.readouterr().out), card.read_text()
    found = {result.metric_type: result.metric_value for result in ModelCard.load(card).data.eval_results}
    if command == "evaluate":
        assert found["frechet_distance"] == record["metrics"]["frechet_distance"]["samples"]
    else:
        assert found == {"auroc": record["metrics"]["energy"]["noise"]["auroc"]["value"]}
    write_card(tmp_path / "model")
    assert card.read_text() == written
    main(arguments)
    assert f"updated {card} (the model card)" in capsys.readouterr().out.splitlines()
    own = written.replace(GENERATED, "")
    card.write_text(own)
    (tmp_path / "model" / "metrics.json").write_text('{"auroc": {"noise": 0.5}}')  # what a new card would say
    main(arguments)
    assert card.read_text() == own and "README.md" not in capsys.readouterr().out
    card.unlink()
    main(arguments)
    assert not card.exists()
