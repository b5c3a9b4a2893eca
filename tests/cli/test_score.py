"""hf-ebm score: scores of images or a data set, as a table or as JSON."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from hf_ebm.cli.main import main, make_parser
from hf_ebm.cli.score import settings_of
from hf_ebm.evaluation.bulk_scoring import ScoringSettings, default_num_workers


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
    head, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["energy", "file"]
    assert [float(line[0]) for line in lines] == pytest.approx(expected, rel=1e-4)
    assert [line[1] for line in lines] == paths


def test_score_skips_and_names_unreadable_files_unless_strict(folder, tmp_path, capsys):
    good, text, large = (str(tmp_path / name) for name in ("good.png", "text.png", "large.tiff"))
    PIL.Image.new("L", (8, 8), 200).save(good)
    PIL.Image.new("F", (20, 20)).save(large)
    with open(text, "w") as file:
        file.write("no picture")
    main(["score", "--model", folder, good])
    alone, said = capsys.readouterr()
    assert f"no p-values and verdicts without a calibration: hf-ebm calibrate --model {folder}" in said
    for batch_size in ("1", "256"):
        main(["score", "--model", folder, "--batch-size", batch_size, text, good, large])
        printed = capsys.readouterr()
        assert printed.out == alone
        first, second = printed.err.splitlines()[-2:]
        assert first.startswith(f"hf-ebm: skipped: image {text} cannot be read")
        assert second.startswith(f"hf-ebm: skipped: image {large} does not fit")
    main(["score", "--model", folder, "--json", text, good])
    found = json.loads(capsys.readouterr().out)
    assert list(found[text]) == ["error"] and found[good]["energy"] == pytest.approx(float(alone.split()[2]), rel=1e-5)
    for arguments in (["--on-error", "stop", good, text], [text], [large, text], ["--batch-size", "0", good]):
        with pytest.raises(SystemExit) as end:
            main(["score", "--model", folder, *arguments])
        printed = capsys.readouterr()
        assert end.value.code == 2 and printed.out == ""
        assert printed.err.splitlines()[-1].startswith("hf-ebm: error: ") and "skipped" not in printed.err


def test_score_takes_the_score_and_the_calibration(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data.digits import load_digits

    scorer = EnergyScoringPipeline.from_pretrained(folder)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    path = str(tmp_path / "a.png")
    PIL.Image.new("RGB", (20, 20), "white").save(path)
    values = str(tmp_path / "values.tiff")
    PIL.Image.new("F", (20, 20)).save(values)
    with pytest.raises(SystemExit):
        main(["score", "--model", folder, values])
    assert "range is not known" in capsys.readouterr().err
    main(["score", "--model", folder, "--score", "typicality", "--json", path])
    row = json.loads(capsys.readouterr().out)[path]
    expected = scorer(path, score="typicality")
    for name, value in (("energy", expected.energies), ("score", expected.scores), ("p_value", expected.p_values)):
        assert row[name] == pytest.approx(value.item(), rel=1e-4)
    assert row["is_ood"] is expected.is_ood.item()
    main(["score", "--model", folder, "--score", "typicality", path])
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert float(cells[1]) == pytest.approx(row["score"], rel=1e-4) and cells[3] == ("yes" if row["is_ood"] else "no")


def test_score_shows_the_energy_once(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data.digits import load_digits

    scorer, path = EnergyScoringPipeline.from_pretrained(folder), str(tmp_path / "a.png")
    PIL.Image.new("L", (8, 8)).save(path)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    main(["score", "--model", folder, path])
    head, cells = (line.split() for line in capsys.readouterr().out.splitlines())
    found = scorer(path)
    assert head == ["energy", "density", "p_value", "is_ood", "file"] and cells[4] == path
    assert float(cells[0]) == pytest.approx(found.energies.item(), rel=1e-4)
    assert float(cells[1]) == pytest.approx(found.scores.item(), rel=1e-3)
    assert float(cells[2]) == pytest.approx(found.p_values.item(), abs=1e-4)
    assert cells[3] == ("yes" if found.is_ood else "no")
    main(["score", "--model", folder, "--score", "energy", path])
    assert capsys.readouterr().out.split()[:4] == ["energy", "p_value", "is_ood", "file"]
    main(["score", "--model", folder, "--score", "gradient_norm", path])
    assert capsys.readouterr().out.split()[:2] == ["energy", "gradient_norm"]


def test_score_of_a_data_set_prints_nothing_but_json(folder, tmp_path, capsys):
    arguments = ["score", "--model", folder, "--dataset", "digits", "--split", "test", "--num-workers", "0", "--json"]
    for _ in range(2):  # the second finds it complete
        main([*arguments, "--output", str(tmp_path / "scores")])
        assert json.loads(capsys.readouterr().out)["rows"] == 360


def test_score_takes_urls_and_prints_them_as_given(folder, file_server, tmp_path, capsys):
    PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    path, url = str(tmp_path / "a.png"), f"{file_server}/a.png"
    main(["score", "--model", folder, "--json", path, url])
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == [path, url] and printed[path] == printed[url]
    main(["score", "--model", folder, url])
    assert capsys.readouterr().out.split()[-1] == url
    with pytest.raises(SystemExit):
        main(["score", "--model", folder, f"{file_server}/none.png"])
    assert f"image {file_server}/none.png cannot be read (HTTP Error 404" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "expected"), [({3}, 1), ({0, 1}, 2), (set(range(8)), 2)])
def test_no_more_workers_than_cores_unless_given(cores, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    assert ScoringSettings("model", "digits", tmp_path).num_workers == expected
    arguments = ["score", "--model", str(tmp_path), "--dataset", "digits", "--output", str(tmp_path / "out")]
    for more, number in (([], expected), (["--num-workers", "5"], 5)):
        assert settings_of(make_parser().parse_args([*arguments, *more])).num_workers == number


def test_without_the_affinity_of_a_process_the_machines_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, expected in ((1, 1), (8, 2), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert default_num_workers() == expected


def test_a_data_sets_name_may_hold_its_split(folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    arguments = ["score", "--model", folder, "--output", str(tmp_path)]
    for name, more, expected in (
        ("digits", [], ("digits", None, "train")),
        ("digits@test", [], ("digits", None, "test")),
        ("user/set:large@train[90%:]", ["--split", "train[90%:]"], ("user/set", "large", "train[90%:]")),
        ("user/set", ["--split", "test", "--config-name", "large"], ("user/set", "large", "test")),
        (f"{pictures}@test", [], (str(pictures), None, "test")),
    ):
        settings = settings_of(make_parser().parse_args([*arguments, "--dataset", name, *more]))
        assert (settings.dataset, settings.config_name, settings.split) == expected


@pytest.mark.parametrize(
    ("command", "dataset", "option"),
    [
        ("score", "digits@test", ["--split", "train"]),
        ("score", "user/set:large", ["--config-name", "small"]),
        ("calibrate", "digits@test", ["--split", "train"]),
        ("evaluate", "digits@train", ["--split", "test"]),
    ],
)
def test_a_name_and_an_option_that_differ_are_refused(folder, tmp_path, capsys, command, dataset, option):
    output = [] if command == "calibrate" else ["--output", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as end:
        main([command, "--model", folder, "--dataset", dataset, *option, *output])
    assert end.value.code == 2 and f"{option[0]} {option[1]} and " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", [["--output", "scores"], ["--split", "test"], ["--id-column", "id"]])
def test_options_of_data_sets_are_refused_for_files(folder, tmp_path, capsys, option):
    picture = str(tmp_path / "a.png")
    PIL.Image.new("L", (8, 8)).save(picture)
    with pytest.raises(SystemExit) as end:
        main(["score", "--model", folder, picture, *option])
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and f"{option[0]} is for a data set" in printed.err


def test_score_writes_a_heat_map_per_file(folder, tmp_path, capsys):
    from hf_ebm import EnergyScoringPipeline
    from hf_ebm.data.digits import load_digits

    paths = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    for path in paths:
        PIL.Image.new("L", (8, 8), 200).save(path)
    maps = tmp_path / "maps"

    def refusal(*arguments):
        with pytest.raises(SystemExit):
            main(["score", "--model", folder, "--maps", str(maps), *arguments])
        return capsys.readouterr().err

    assert "output_maps needs in-distribution statistics" in refusal(*paths)
    scorer = EnergyScoringPipeline.from_pretrained(folder)
    scorer.calibrate(load_digits("test")[0][:40], target_fpr=0.1)
    scorer.calibration.save(folder)
    again = str(tmp_path / "more" / "b.png")
    os.makedirs(os.path.dirname(again))
    PIL.Image.new("L", (8, 8)).save(again)
    assert "images of the same name would overwrite each other" in refusal(*paths, again)
    assert "--maps is for image files" in refusal("--dataset", "digits", "--output", str(tmp_path / "scores"))
    assert not maps.exists()
    main(["score", "--model", folder, "--batch-size", "1", *paths])
    alone = capsys.readouterr().out
    main(["score", "--model", folder, "--maps", str(maps), "--batch-size", "1", *paths])
    printed = capsys.readouterr()
    assert printed.out == alone and f"wrote 2 heat maps into {maps}" in printed.err
    assert sorted(path.name for path in maps.iterdir()) == ["a.png", "b.png"]
    assert f"--maps: {maps}/a.png exists; add --overwrite" in refusal(*paths)
    main(["score", "--model", folder, "--maps", str(maps), "--overwrite", *paths])
    with PIL.Image.open(maps / "a.png") as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert image.width > 400 and (np.ptp(colours, axis=1) > 40).any()  # coloured
