"""The command line: pictures, energies, and one clear line for a mistake."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch

import hf_ebm
from hf_ebm.cli import COMMANDS, exit_code, main, make_parser


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_sample_writes_a_grid_that_the_seed_decides(folder, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(
            [
                "sample",
                "--model",
                folder,
                "--num-images",
                "6",
                "--seed",
                seed,
                "--output",
                str(tmp_path / f"{name}.png"),
            ]
        )
    a, b, c = (np.asarray(PIL.Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert a.shape[:2] == (2 * 72, 3 * 72) and (a == b).all() and (a != c).any()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trian", "--help"], 2, "there is no command 'trian'; did you mean train?"),
        (["zzz"], 2, "there is no command 'zzz'; choose from train, sample"),
        (["--version"], 0, f"hf-ebm {hf_ebm.__version__}"),
    ],
)
def test_commands_that_are_not_there_and_the_version(capsys, arguments, code, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code and said in "".join(capsys.readouterr())


def test_the_known_commands_are_the_parsers():
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[-1].replace("_", "-")
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])


def test_score_prints_the_energies(folder, tmp_path, capsys, tiny_pipeline):
    images = [PIL.Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 200)]
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    main(["score", "--model", folder, "--json", *paths])
    printed = json.loads(capsys.readouterr().out)
    expected = tiny_pipeline.score(images).energies.tolist()
    for path, energy in zip(paths, expected, strict=True):
        assert printed[path]["energy"] == pytest.approx(energy, rel=1e-4) == printed[path]["score"]
        assert printed[path]["p_value"] is None and printed[path]["is_ood"] is None
    main(["score", "--model", folder, *paths])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(line[0]) for line in lines] == pytest.approx(expected, rel=1e-4)
    assert [line[1] for line in lines] == paths


def test_score_takes_the_score_and_the_calibration(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data import load_digits

    scorer = EnergyScoringPipeline.from_pretrained(folder)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    path = str(tmp_path / "a.png")
    PIL.Image.new("RGB", (20, 20), "white").save(path)
    with pytest.raises(SystemExit):
        main(["score", "--model", folder, path])
    assert "convert_picture(image, 1)); --resize converts" in capsys.readouterr().err
    main(["score", "--model", folder, "--score", "typicality", "--resize", "--json", path])
    row = json.loads(capsys.readouterr().out)[path]
    expected = scorer(path, score="typicality", resize=True)
    for name, value in (("energy", expected.energies), ("score", expected.scores), ("p_value", expected.p_values)):
        assert row[name] == pytest.approx(value.item(), rel=1e-4)
    assert row["is_ood"] is expected.is_ood.item()
    main(["score", "--model", folder, "--score", "typicality", "--resize", path])
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert float(cells[1]) == pytest.approx(row["score"], rel=1e-4) and cells[3] == ("yes" if row["is_ood"] else "no")


def test_score_shows_the_energy_once(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data import load_digits

    scorer, path = EnergyScoringPipeline.from_pretrained(folder), str(tmp_path / "a.png")
    PIL.Image.new("L", (8, 8)).save(path)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    main(["score", "--model", folder, path])
    head, cells = (line.split() for line in capsys.readouterr().out.splitlines())
    found = scorer(path)
    assert head == ["energy", "p_value", "is_ood", "file"] and cells[3] == path
    assert float(cells[0]) == pytest.approx(found.energies.item(), rel=1e-4)
    assert float(cells[1]) == pytest.approx(found.p_values.item(), abs=1e-4)
    assert cells[2] == ("yes" if found.is_ood else "no")
    main(["score", "--model", folder, "--score", "gradient_norm", path])
    assert capsys.readouterr().out.split()[:2] == ["energy", "gradient_norm"]


def test_score_of_a_data_set_prints_nothing_but_json(folder, tmp_path, capsys):
    arguments = ["score", "--model", folder, "--dataset", "digits", "--split", "test", "--num-workers", "0", "--json"]
    for _ in range(2):  # the second finds it complete
        main([*arguments, "--output", str(tmp_path / "scores")])
        assert json.loads(capsys.readouterr().out)["rows"] == 360


def test_eval_ood_writes_table_protocol_and_picture(folder, tmp_path, capsys):
    out = tmp_path / "ood"
    arguments = ["eval-ood", "--model", folder, "--id", "digits", "--ood", "noise,constant", "--output", str(out)]
    main([*arguments, "--max-images", "40", "--resamples", "10", "--scores", "energy,typicality"])
    record = json.loads((out / "ood.json").read_text())
    assert set(record["metrics"]) >= {"energy", "typicality", "pixel_gaussian", "nearest_neighbour"}
    assert set(record["metrics"]["energy"]) == {"noise", "constant", "mean"}
    protocol = record["protocol"]
    assert protocol["in_distribution"]["split"] == "test" and protocol["in_distribution"]["num_images"] == 40
    assert protocol["statistics_and_baselines"]["split"] == "train" and protocol["seed"] == 0
    assert protocol["scores"]["of_the_model"] == ["energy", "typicality"] and "8x8" in protocol["preprocessing"]
    assert set(protocol["autoencoder"]) == {"epochs", "converged"}
    assert protocol["odd_sets"]["noise"]["num_images"] == 40 and "torch" in protocol["software"]
    assert protocol["model"] == "model" and str(tmp_path) not in (out / "ood.json").read_text()
    assert {path.name for path in out.iterdir()} == {"ood.json", "roc.png", "histograms.png"}
    assert "pixel_gaussian" in capsys.readouterr().out


def test_padding_of_the_run_and_named_data_sets_are_in_the_protocol(folder, tmp_path, monkeypatch, capsys):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "odd" / "train").mkdir(parents=True)
    for index in range(12):
        PIL.Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(tmp_path / "odd" / "train" / f"{index}.png")
    (tmp_path / "model" / "settings.yaml").write_text("padding: 2\n")
    arguments = ["eval-ood", "--model", folder, "--id", "digits@test", "--ood", f"noise,{tmp_path}/odd", "--json"]
    arguments += ["--max-images", "40", "--resamples", "5", "--scores", "energy", "--no-baselines"]
    main([*arguments, "--output", str(tmp_path / "ood")])
    record = json.loads(capsys.readouterr().out)
    assert set(record["metrics"]["energy"]) == {"noise", "odd", "mean"} and str(tmp_path) not in json.dumps(record)
    found = record["protocol"]["odd_sets"]["odd"]
    assert found["split"] == "train" and found["only_split"]
    assert (
        "resized to 4x4" in record["protocol"]["preprocessing"] and "padded by 2" in record["protocol"]["preprocessing"]
    )
    main([*arguments, "--padding", "0", "--output", str(tmp_path / "again")])
    assert "padded" not in json.loads(capsys.readouterr().out)["protocol"]["preprocessing"]


def test_score_and_reconstruct_pad_as_in_training(tiny_pipeline, folder, dual_folder, tmp_path, capsys, monkeypatch):
    import datasets

    from hf_ebm import DualMCMCPipeline
    from hf_ebm.data import image_transform
    from hf_ebm.scoring.run import main as run_main

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set" / "train").mkdir(parents=True)
    path = str(tmp_path / "set" / "train" / "4.png")
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8))
    picture.save(path)
    for name in ("model", "dual"):
        (tmp_path / name / "settings.yaml").write_text("padding: 2\n")
    x = image_transform(1, 8, padding=2)(picture)[None]
    expected = tiny_pipeline.score(x).energies.item()
    for resize in ([], ["--resize"]):
        main(["score", "--model", folder, *resize, "--json", path])
        assert json.loads(capsys.readouterr().out)[path]["energy"] == pytest.approx(expected, rel=1e-4)
    main(["score", "--model", folder, "--resize", "--padding", "0", "--json", path])
    assert json.loads(capsys.readouterr().out)[path]["energy"] != pytest.approx(expected, rel=1e-4)
    arguments = ["--model", folder, "--dataset", str(tmp_path / "set"), "--num-workers", "0", "--output"]
    for name, command in (("a", run_main), ("b", lambda rest: main(["score", *rest]))):
        command([*arguments, str(tmp_path / name)])
        (row,) = pq.read_table(tmp_path / name / "scores").to_pylist()
        assert row["energy"] == pytest.approx(expected, rel=1e-4)
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["protocol"]["padding"] == 2
    capsys.readouterr()
    main(["reconstruct", "--model", dual_folder, path, "--output", str(tmp_path / "again.png"), "--json"])
    found = json.loads(capsys.readouterr().out)["errors"][path]["mse"]["inference_model"]
    pipeline = DualMCMCPipeline.from_pretrained(dual_folder)
    again = pipeline.reconstruct(x, 0, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert found == pytest.approx((again - x).square().mean().item(), rel=1e-4)


def test_evaluate_writes_figures_and_protocol(folder, tmp_path, capsys):
    arguments = ["evaluate", "--model", folder, "--dataset", "digits", "--num-images", "24", "--seed", "3"]
    arguments += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "run")]
    main(arguments)
    printed, progress = capsys.readouterr()
    assert all(f"{title}:" in progress for title in ("test images", "train images", "samples, seed 3"))
    assert (
        "%|" not in printed
        and "Frechet distance (not FID)" in printed
        and "coverage" in printed
        and "train images" in printed
    )
    main([*arguments, "--json"])
    record = json.loads((tmp_path / "run" / "evaluate.json").read_text())
    assert json.loads(capsys.readouterr().out) == record
    assert record["protocol"]["model"] == "model" and record["protocol"]["seed"] == 3 and record["seconds"] > 0
    assert any("24 images cannot fill the covariance" in limit for limit in record["limits"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["evaluate.json"]


def test_calibrate_writes_what_the_pipeline_finds_and_renews_the_card(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data import draw_rows, load_digits
    from hf_ebm.hub import write_card
    from hf_ebm.scoring.calibration import Calibration

    card = write_card(tmp_path / "model")
    digits, scorer = load_digits("test")[0], EnergyScoringPipeline.from_pretrained(folder)
    arguments = ["calibrate", "--model", folder, "--dataset", "digits", "--target-fpr", "0.1"]
    main([*arguments, "--score", "typicality", "--json"])
    record, saved = json.loads(capsys.readouterr().out), Calibration.load(folder)
    expected = scorer.calibrate(digits, target_fpr=0.1)
    assert saved.reference == expected.reference and saved.statistics == expected.statistics
    assert "converted to gray" in saved.preprocessing and record["calibrated_scores"] == sorted(expected.reference)
    assert record["threshold"] == expected.threshold("typicality")
    assert record["called_odd"] == 35  # the k-th largest of 360 has p = (1 + k) / 361, which is <= 0.1 up to 35
    assert (record["num_images"], record["dataset"], record["split"]) == (360, "digits", "test")
    assert "Calibrated on 360 held-out" in card.read_text()

    main([*arguments, "--num-images", "50", "--seed", "3"])
    expected = scorer.calibrate(digits[draw_rows(360, 50, 3)], target_fpr=0.1, seed=3)
    assert Calibration.load(folder).reference == expected.reference
    printed, notes = capsys.readouterr()
    assert f"energy above {expected.threshold('energy'):.6g} is called odd: 4 of the 50 images" in printed
    assert f"wrote {card} (the model card) anew" in printed and "note:" not in notes


def test_calibrate_warns_of_the_split_that_was_trained_on(folder, tmp_path, capsys):
    (tmp_path / "model" / "settings.yaml").write_text("dataset: digits\ndataset_split: train\n")
    for split, warns in (("test", False), ("train", True)):
        main(["calibrate", "--model", folder, "--dataset", "digits", "--split", split, "--num-images", "40"])
        assert ("split train of digits has images that the model was trained on" in capsys.readouterr().err) is warns


def test_calibrate_warns_of_slices_of_what_was_trained_on(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for index in range(20):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 1 + 12 * index, (8, 8), dtype=np.uint8)
        pixels[1 + index % 8 :] = 0  # images of several compressed sizes
        PIL.Image.fromarray(pixels).save(tmp_path / "set" / "train" / f"{index:02}.png")
    settings = tmp_path / "model" / "settings.yaml"
    for trained, split, warns in (
        ("train", "train[:90%]", True),
        ("train[:50%]", "train[50%:]", False),
        ("train[:50%]", "train", True),
        ("train", None, True),  # the only one, as there is no split test
    ):
        settings.write_text(f"dataset: {tmp_path / 'set'}\ndataset_split: {trained}\n")
        named = [] if split is None else ["--split", split]
        main(["calibrate", "--model", folder, "--dataset", str(tmp_path / "set"), "--target-fpr", "0.2", *named])
        note = f"split {split or 'train'} of set has images that the model was trained on (split {trained})"
        assert (note in capsys.readouterr().err) is warns, split


def test_a_model_without_a_calibration_is_told_the_command(folder, tmp_path, capsys):
    path, command = str(tmp_path / "a.png"), f"hf-ebm calibrate --model {folder} --dataset NAME"
    PIL.Image.new("L", (8, 8)).save(path)
    files = ["score", "--model", folder]
    data = [*files, "--dataset", "digits", "--split", "test", "--num-workers", "0", "--output", str(tmp_path / "out")]
    for arguments in ([*files, path, "--require-calibration"], [*data, "--require-calibration"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert command in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*files, path, "--score", "typicality"])
    assert "hf-ebm calibrate --model FOLDER" in capsys.readouterr().err
    main(data)
    assert command in capsys.readouterr().out


EVALUATIONS = {
    "evaluate": ["--dataset", "digits", "--num-images", "24", "--cache", "CACHE"],
    "eval-ood": ["--id", "digits", "--ood", "noise", "--max-images", "20", "--resamples", "5", "--no-baselines"],
}


@pytest.mark.parametrize("command", EVALUATIONS)
def test_the_card_of_a_run_folder_takes_the_figures_over_unless_it_is_somebodys_own(command, folder, tmp_path, capsys):
    from huggingface_hub import ModelCard

    from hf_ebm.hub import GENERATED, write_card

    card = write_card(tmp_path / "model")
    arguments = [command, "--model", folder, *EVALUATIONS[command], "--output", folder]
    arguments = [str(tmp_path / "cache") if argument == "CACHE" else argument for argument in arguments]
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
    assert f"wrote {card} (the model card) anew" in capsys.readouterr().out.splitlines()
    own = written.replace(GENERATED, "")
    card.write_text(own)
    (tmp_path / "model" / "metrics.json").write_text('{"auroc": {"noise": 0.5}}')  # what a new card would say
    main(arguments)
    assert card.read_text() == own and "README.md" not in capsys.readouterr().out
    card.unlink()
    main(arguments)
    assert not card.exists()


@pytest.fixture
def digit_files(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def dual_folder(tiny_dual_mcmc_pipeline, tmp_path):
    tiny_dual_mcmc_pipeline.save_pretrained(tmp_path / "dual")
    return str(tmp_path / "dual")


def test_reconstruct_writes_a_picture_or_a_folder(dual_folder, digit_files, tmp_path, capsys):
    arguments = ["reconstruct", "--model", dual_folder, *digit_files, "--num-inference-steps", "4", "--json"]
    main([*arguments, "--output", str(tmp_path / "again.png")])
    found = json.loads(capsys.readouterr().out)
    assert PIL.Image.open(tmp_path / "again.png").size == (3 * 72, 3 * 72)
    main([*arguments, "--output", str(tmp_path / "files")])
    assert json.loads(capsys.readouterr().out)["errors"] == found["errors"]
    for path in digit_files:
        errors = found["errors"][path]["mse"]
        assert errors["z_chain"] < errors["inference_model"]
        original = PIL.Image.open(path).resize((8, 8), PIL.Image.Resampling.BICUBIC)
        again = PIL.Image.open(tmp_path / "files" / path.rsplit("/", 1)[1])
        difference = (np.asarray(original, dtype=float) - np.asarray(again, dtype=float)) / 127.5
        assert (difference**2).mean() == pytest.approx(errors["z_chain"], rel=0.02)  # files hold 8 bits


def test_info_says_what_is_there(dual_folder, folder, capsys, tiny_dual_mcmc_pipeline):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data import load_digits

    main(["info", "--model", dual_folder, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "Dual-MCMC Teaching" and found["sample_shape"] == [1, 8, 8]
    expected = sum(p.numel() for p in tiny_dual_mcmc_pipeline.energy_model.parameters())
    assert found["networks"]["energy_model"]["parameters"] == expected
    assert found["networks"]["energy_model"]["bytes"] > 4 * expected
    assert found["samplers"]["scheduler"]["settings"]["step_size"] == 0.5
    assert found["calibration"] is None and found["training"] is None and found["measured"] == []
    scorer = EnergyScoringPipeline.from_pretrained(folder)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    main(["info", "--model", folder])
    printed = capsys.readouterr().out
    assert "calibrated on 40 samples, target_fpr=0.1" in printed and "DDAEBMScheduler(" in printed


def test_sample_prints_json(folder, tmp_path, capsys):
    main(["sample", "--model", folder, "--num-images", "2", "--output", str(tmp_path / "s.png"), "--json"])
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "s.png")


def test_conditionals_of_a_model_without_a_chain_are_refused_at_once(dual_folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_ebm.scoring.model_likelihood.measure_likelihood", None)
    with pytest.raises(SystemExit):
        main(["likelihood", "--model", dual_folder, "--dataset", "digits", "--num-conditionals", "2"])
    assert "--num-conditionals: pipeline must be a DDAEBMPipeline" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.rsplit(".", 1)[1])
def test_every_help_shows_an_example_that_parses(command, capsys):
    name = command.__name__.rsplit(".", 1)[1].replace("_", "-")
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and re.search(f"examples?: hf-ebm {name} ", shown)
    epilog = re.split("examples?: ", make_parser()._subparsers._group_actions[0].choices[name].epilog, maxsplit=1)[1]
    examples = [part.split("#")[0] for part in re.split(r"[;\n]\s*", epilog) if part.startswith("hf-ebm ")]
    assert examples
    for example in examples:
        assert make_parser().parse_args(shlex.split(example)[1:]).command == name


def test_help_shows_what_every_option_is_its_choices_and_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    from hf_ebm.scoring.run_settings import SCORE_NAMES

    for name, parser in make_parser()._subparsers._group_actions[0].choices.items():
        for action in parser._actions:
            shown = parser._get_formatter()._expand_help(action) if action.help else ""
            assert shown, f"{name} {action.dest}"
            if action.default not in (None, False, "==SUPPRESS==") and action.nargs != "*":
                assert f"default: {action.default}" in shown, f"{name} {action.dest}: {shown}"
    score = make_parser()._subparsers._group_actions[0].choices["score"].format_help()
    assert "{" + ",".join(SCORE_NAMES) + "}" in score and "which a folder of images always has" in score


def test_choices_of_the_commands_are_those_of_the_code():
    """The commands do not import the code, so that help is quick."""
    from hf_ebm.commands import eval_ood, likelihood
    from hf_ebm.scoring import model_log_z
    from hf_ebm.scoring.odd_images import ODD_IMAGES
    from hf_ebm.scoring.run_settings import SCORE_NAMES
    from hf_ebm.scoring.scores import SCORES

    assert tuple(SCORES) == SCORE_NAMES and tuple(ODD_IMAGES) == eval_ood.ODD_SETS
    assert likelihood.BASES == model_log_z.BASES and likelihood.REVERSE_FROM == model_log_z.REVERSE_FROM
    assert [name for name, score in SCORES.items() if not score.needs_statistics] == [
        "energy", "gradient_norm", "reconstruction",
    ]  # fmt: skip


def test_train_starts_the_script_and_passes_its_one_line_and_code_on(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    found = subprocess.run(
        [sys.executable, "-m", "hf_ebm.cli", "train", "ddaebm", "max_step=1"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("hf-ebm: error: unknown setting 'max_step'; did you mean max_steps")
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (130, 130), (1, 1), (-9, 1), (3, 1)])
@pytest.mark.parametrize("number", [1, 2])
def test_train_ends_with_2_for_a_mistake_130_for_ctrl_c_and_1_for_all_else(monkeypatch, number, code, expected):
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(options):
        assert options.training_script == "hf_ebm.training.train_ddaebm" and options.training_script_args == ["a=1"]
        if number == 1:
            raise subprocess.CalledProcessError(code, "python")
        raise ChildFailedError("python", {rank: ProcessFailure(rank, 1, code, "no file") for rank in range(number)})

    monkeypatch.setattr(launch, "launch_command", fail)
    with pytest.raises(SystemExit) as end:
        main(["train", "ddaebm", "a=1"])
    assert end.value.code == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_step=3"], "did you mean max_steps"),
        (["max_steps=abc"], "'max_steps' must be int, got 'abc'"),
        (["--config", "nope.yaml"], "--config nope.yaml is not a file"),
        (["models.energy.size=3"], "has no setting 'size'; see its docstring"),
        (["models.unet.image_sise=3"], "UNetEnergyConfig has no setting 'image_sise'; did you mean image_size?"),
        (
            ["models.generator.latent_dims=3"],
            "GeneratorModel has no setting 'latent_dims'; did you mean latent_dim",
        ),
        (["models.inference.latnet=3"], "PairInferenceModel has no setting 'latnet'; did you mean latent_dim"),
        (["dataset=no/such/set"], "dataset 'no/such/set'"),
        (["dataset=/no/images"], " /no/images. Give a Hub id"),
    ],
)
def test_a_mistake_in_the_settings_ends_a_training_script_with_one_line_and_code_2(
    arguments, message, tmp_path, capsys, monkeypatch
):
    from hf_ebm.training import train_ddaebm

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as end:
        train_ddaebm.main([*arguments, f"output_dir={tmp_path / 'run'}"])
    assert end.value.code == 2 and not (tmp_path / "run" / "settings.yaml").exists()
    printed = capsys.readouterr().err
    assert printed.startswith("hf-ebm: error: ") and message in printed and "Traceback" not in printed


def test_a_missing_package_is_named_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hf_ebm.scoring.sample_evaluation", None)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--model", "m", "--dataset", "digits"])
    assert end.value.code == 1 and "pip install 'hf-ebm[train,eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--model", "FOLDER"],
        ["score", "--model", "FOLDER", "PICTURE"],
        ["score", "--model", "FOLDER", "--dataset", "digits", "--output", "OUTPUT"],
        ["calibrate", "--model", "FOLDER", "--dataset", "digits"],
        ["eval-ood", "--model", "FOLDER", "--id", "digits"],
        ["evaluate", "--model", "FOLDER", "--dataset", "digits"],
        ["reconstruct", "--model", "FOLDER", "PICTURE"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_model_is_moved_to_the_device_if_it_is_here(folder, arguments, tmp_path, capsys, monkeypatch):
    from diffusers import DiffusionPipeline

    def move(pipeline, device):
        raise ValueError(f"moved to {device}")

    picture = tmp_path / "a.png"
    PIL.Image.new("L", (8, 8)).save(picture)
    monkeypatch.setattr(DiffusionPipeline, "to", move)
    known = {"FOLDER": folder, "PICTURE": str(picture), "OUTPUT": str(tmp_path / "out")}
    arguments = [known.get(argument, argument) for argument in arguments]
    for device, message in (
        ("cpu:0", "moved to cpu:0"),
        ("gpu", r"--device must be one that is available here \(cpu.*\), got 'gpu': .*no such kind of device"),
        ("meta", r"--device must be one that is available here \(cpu.*\), got 'meta'"),
        ("gpu", "--device must be one .*, got 'gpu'"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--device", device])
        assert end.value.code == 2 and re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_ctrl_c_ends_a_command_with_one_line(folder, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ebm.commands.sample.load_image_generator", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["sample", "--model", folder])
    assert end.value.code == 130 and capsys.readouterr().err.endswith("hf-ebm: stopped by the user.\n")


def test_without_a_command_all_are_shown(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and printed.err == make_parser().format_help()
    for name in ("train", "calibrate", "push-space", "hf-ebm sample --model outputs/ddaebm-digits"):
        assert name in printed.err


def test_exit_codes():
    assert exit_code(ValueError("x")) == exit_code(FileNotFoundError(2, "x")) == exit_code(OSError("no repo")) == 2
    assert exit_code(OSError(28, "No space left on device")) == exit_code(ImportError("no matplotlib")) == 1


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["likelihood", "--model", "FOLDER", "--dataset", "digits", "--base", "none"], "--base: invalid choice"),
        (["likelihood", "--model", "FOLDER", "--dataset", "25gaussians"], "2-D points"),
        (["likelihood", "--model", "FOLDER", "--dataset", "digits", "--num-conditionals", "-1"], "--num-conditionals"),
        (["sample", "--model", "FOLDER", "--num-images", "0"], "--num-images"),
        (["calibrate", "--model", "user/name", "--dataset", "digits"], "--model must be a run folder"),
        (["calibrate", "--model", ".", "--dataset", "digits"], "model_index.json"),
        (["calibrate", "--model", "FOLDER", "--dataset", "digits", "--num-images", "0"], "--num-images"),
        (["calibrate", "--model", "FOLDER", "--dataset", "digits", "--score", "combined"], "--score: this model"),
        (["calibrate", "--model", "FOLDER", "--dataset", "digits", "--target-fpr", "0.001"], "at least 999"),
        (["score", "--model", "FOLDER", "no-such-file.png"], "no-such-file.png"),
        (["score", "--model", "FOLDER", "--score", "nll", "a.png"], "--score: invalid choice"),
        (["sample", "--model", "no-such-folder/a/b"], "no-such-folder"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--scores", "combined"], "'combined'"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--max-images", "2"], "max_images"),
        (["eval-ood", "--model", "FOLDER", "--id", "digits", "--resamples", "0"], "--resamples"),
        (["evaluate", "--model", "FOLDER", "--dataset", "digits", "--num-images", "2"], "num_images"),
        (["evaluate", "--model", "FOLDER", "--dataset", "a/b/c", "--feature-extractor", "digits"], "a/b/c"),
        (["evaluate", "--model", "FOLDER", "--dataset", "digits", "--feature-extractor", "no/such/x"], "no/such/x"),
        (["reconstruct", "--model", "FOLDER", "PICTURE"], "does not reconstruct"),
        (["reconstruct", "--model", "FOLDER", "a.png", "--output", "a.txt"], "--output"),
        (["reconstruct", "--model", "FOLDER", "a/1.png", "b/1.png", "--output", "o"], "overwrite each other"),
        (["info", "--model", "."], "model_index.json"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(folder, tmp_path, capsys, arguments, message):
    picture = str(tmp_path / "a.png")
    PIL.Image.new("L", (8, 8)).save(picture)
    with pytest.raises(SystemExit) as error:
        main([{"FOLDER": folder, "PICTURE": picture}.get(argument, argument) for argument in arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
