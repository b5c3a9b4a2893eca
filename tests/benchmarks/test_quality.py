"""The comparison at equal wall clock trains, evaluates, resumes, and writes a correct table."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _plain_modules(monkeypatch):
    """The benchmarks import each other as plain modules."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def module(name):
    return importlib.import_module(name)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command and its training processes in this process."""
    quality = module("quality")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def train(command, check, env):
        assert command[0] == sys.executable and check and env["ACCELERATE_USE_CPU"] == "true"
        _, name, *arguments = command if command[1] != "-m" else command[1:]
        AcceleratorState._reset_state(reset_partial_state=True)
        module(name.removeprefix(str(BENCHMARKS) + os.sep).removesuffix(".py")).main(arguments)

    processes = SimpleNamespace(run=train, CalledProcessError=subprocess.CalledProcessError)
    monkeypatch.setattr(quality, "subprocess", processes)

    def call(*arguments):
        # so little time that each part is one step, however fast the machine is
        options = [
            "--data",
            "digits",
            "--methods",
            "ddpm",
            "--device",
            "cpu",
            "--seconds",
            "1e-6",
            "--num-evaluations",
            "2",
        ]
        options += ["--probe-seconds", "0.1", "--num-images", "30", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["quality.py", *options, *arguments])
        ended = None
        try:
            quality.main()
        except SystemExit as end:
            ended = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(ended=ended, stdout=printed.out, stderr=printed.err)

    return call


def test_it_trains_evaluates_and_resumes(tmp_path, run):
    out = run()
    assert out.ended is None
    record = json.loads((tmp_path / "results.json").read_text())
    *_, last = evaluations = record["runs"]["ddpm"]["0"]["evaluations"]
    assert [one["training"]["steps"] for one in evaluations] == [1, 2]
    assert record["runs"]["ddpm"]["0"]["max_steps"] == 2
    assert set(last["samplers"]) == {f"DDPM, DDIM {steps} steps" for steps in (4, 10, 50)}
    assert last["samplers"]["DDPM, DDIM 4 steps"]["images_per_second"] > 0 < record["real_vs_real"]["frechet_distance"]
    assert "DDIM 50 steps" in (tmp_path / "table.md").read_text() and (tmp_path / "quality.png").stat().st_size > 5000

    evaluations.pop()  # as if stopped before the last evaluation was written
    (tmp_path / "results.json").write_text(json.dumps(record))
    out = run()
    assert out.ended is None
    assert f"seed 0, after {len(evaluations)} evaluations" in out.stdout and "after 0 evaluations" not in out.stdout
    again = json.loads((tmp_path / "results.json").read_text())["runs"]["ddpm"]["0"]["evaluations"]
    assert again[:-1] == evaluations and again[-1]["training"]["steps"] == last["training"]["steps"]

    refused = run("--seconds", "3")
    assert "was made with other settings (seconds)" in refused.ended

    assert record["runs"]["ddpm"]["0"]["commit"] == module("changes").current_commit()
    record["runs"]["ddpm"]["0"]["recipe"]["batch_size"] = 63
    (tmp_path / "results.json").write_text(json.dumps(record))
    refused = run("--seeds", "1")
    assert "runs of ddpm with another recipe (batch_size: {'batch_size': 63})" in refused.ended
    assert json.loads((tmp_path / "results.json").read_text()) == record


def evaluation(distance, seconds=10.0, rate=50.0, steps=100, auroc=0.75):
    metrics = {"frechet_distance": distance, "kernel_distance": 2.0, "precision": 0.5, "recall": 0.25}
    training = {
        "seconds": seconds,
        "steps": steps,
        "images_per_second": 64.0,
        "peak_memory_bytes": 2**30,
        "parameters": {"unet": 2e6},
    }
    samplers = {f"DDPM, DDIM {steps} steps": {**metrics, "images_per_second": rate} for steps in (4, 10, 50)}
    return {"training": training, "samplers": samplers, "aurocs": {"noise": 1.0, "rotated": auroc}}


def test_the_table_is_over_finished_seeds():
    """Mean and standard deviation of the last evaluations; unfinished runs do not count."""
    record = {
        "protocol": {"num_evaluations": 2},
        "real_vs_real": {"frechet_distance": 1.0, "kernel_distance": 1.0, "precision": 0.9, "recall": 0.9},
        "runs": {
            "ddpm": {
                "0": {
                    "max_steps": 100,
                    "evaluations": [evaluation(9.0, steps=50), evaluation(3.0, seconds=10.0, auroc=0.7)],
                },
                "1": {
                    "max_steps": 100,
                    "evaluations": [evaluation(9.0, steps=50), evaluation(5.0, seconds=30.0, auroc=0.8)],
                },
                "2": {"max_steps": 100, "evaluations": [evaluation(100.0, steps=99)]},
                "3": {"evaluations": []},
            }
        },
    }
    head, _, real, *rows = (
        module("quality_report").make_table(record, module("quality_methods").CONTENDERS).splitlines()
    )
    assert [row.split("|")[1].strip() for row in rows] == [f"DDPM, DDIM {steps} steps" for steps in (4, 10, 50)]
    cells = dict(zip([c.strip() for c in head.split("|")], [c.strip() for c in rows[0].split("|")], strict=True))
    assert cells["FD"] == "4.00 ± 1.41" and cells["kernel distance"] == "2.00 ± 0.00" and cells["seeds"] == "2"
    assert cells["training s"] == "20" and cells["peak memory MiB"] == "1024" and cells["saved parameters M"] == "2.00"
    assert cells["AUROC"] == "0.875 ± 0.035"  # means over OOD sets of 0.85 and 0.9
    assert real.split("|")[2:6] == [" 1.00 ", " 1.00 ", " 0.900 ", " 0.900 "]
    assert len(real.split("|")) == len(head.split("|"))


def test_runs_that_ended_early_are_in_the_table():
    early = {"max_steps": 100, "evaluations": [evaluation(9.0, steps=50)], "ended_early": True}
    done = {"max_steps": 100, "evaluations": [evaluation(3.0)]}
    real = {"frechet_distance": 1.0, "kernel_distance": 1.0, "precision": 0.9, "recall": 0.9}
    for runs, distance, seeds in (
        ({"0": done, "1": early}, "3.00", "1, 1 ended early"),
        ({"0": early}, "", "0, 1 ended early"),
    ):
        record = {"real_vs_real": real, "runs": {"ddpm": runs}}
        table = module("quality_report").make_table(record, module("quality_methods").CONTENDERS)
        head, _, _, *rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
        assert len(rows) == 3 and all(len(row) == len(head) for row in rows)
        cells = dict(zip(head, rows[0], strict=True))
        assert cells["FD"] == distance and cells["seeds"] == seeds


def test_changes_to_one_recipe_are_compared(tmp_path, run):
    """The table has the recipe and each change, with the energies' AUROC."""
    changes = ("--change", "batch_size=8 r1_interval=2")
    out = run("--methods", "ddaebm", "--num-evaluations", "1", *changes)
    assert out.ended is None
    _, _, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["as shipped", "batch_size=8 r1_interval=2"]
    record = json.loads((tmp_path / "results.json").read_text())
    assert 0.0 < record["runs"]["as shipped"]["0"]["evaluations"][0]["aurocs"]["rotated"] <= 1.0
    for name, size, interval in (("as shipped", 32, 4), ("batch_size=8 r1_interval=2", 8, 2)):
        folder = tmp_path / "runs" / f"{name.replace(' ', '_')}-0"
        settings = (folder / "settings.yaml").read_text()
        assert f"batch_size: {size}\n" in settings and f"r1_interval: {interval}\n" in settings


def test_the_changes_of_earlier_commands_stay_in_the_table(tmp_path):
    """The table shows every run of the record, whatever the command asked for."""
    done = {"0": {"max_steps": 100, "evaluations": [evaluation(3.0)]}}
    samplers = done["0"]["evaluations"][0]["samplers"]
    for name in ("as shipped", "batch_size=4"):
        for steps in (4, 10, 50):
            samplers[f"{name}: DDPM, DDIM {steps} steps"] = samplers[f"DDPM, DDIM {steps} steps"]
    real = {"frechet_distance": 1.0, "kernel_distance": 1.0, "precision": 0.9, "recall": 0.9}
    record = {"protocol": {"method": "ddpm"}, "real_vs_real": real, "runs": {"as shipped": done, "batch_size=4": done}}
    module("quality").save_record(record, SimpleNamespace(output=tmp_path))
    _, _, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split("|")[1].split(":")[0].strip() for row in rows] == 3 * ["as shipped"] + 3 * ["batch_size=4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--change", "batch_size=8", "--methods", "ddaebm", "ddpm"), "--change needs one method in --methods"),
        (("--change", "batch_size"), "--change must be key=value"),
        (("--change", ""), "--change must be key=value"),
    ],
)
def test_wrong_changes(tmp_path, run, arguments, said):
    out = run(*arguments)
    assert out.ended == 2 and said in out.stderr and not (tmp_path / "results.json").exists()


def test_steps_that_fit_are_counted_from_the_third_on(tmp_path, monkeypatch):
    """Two slow first steps (5 s each), then ten a second: 200 steps fit into 20 s."""
    quality = module("quality")

    def launch(contender, arguments, options):
        folder = Path(arguments["output_dir"])
        folder.mkdir()
        ends = [5.0, 10.0] + [10.0 + 0.1 * n for n in range(1, 11)]
        lines = [{"step": n, "steps_per_second": n / end} for n, end in enumerate(ends, start=1)]
        (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))

    monkeypatch.setattr(quality, "launch", launch)
    options = SimpleNamespace(probe_seconds=1.0, seconds=20.0, num_evaluations=4)
    assert quality.find_max_steps(None, options, tmp_path / "probe") == 200
    assert not (tmp_path / "probe").exists()


def test_a_finished_run_estimates_how_many_steps_fit():
    """100 steps took 25 s, so 80 fit into 20 s. An unfinished run is not used."""
    options = SimpleNamespace(seconds=20.0, num_evaluations=2)
    ended = {"max_steps": 100, "evaluations": [evaluation(1.0, steps=60), evaluation(1.0, seconds=25.0)]}
    unfinished = {"max_steps": 999, "evaluations": [evaluation(1.0)]}
    assert module("quality").steps_that_fit(None, {"0": ended, "1": unfinished}, options, Path("probe")) == 80


def test_a_run_without_its_checkpoint_restarts(tmp_path, monkeypatch):
    """On another machine, without the folder, the old evaluations are dropped and each part keeps its time."""
    quality, seen = module("quality"), []

    def launch(contender, arguments, options):
        seen.append(arguments)
        (tmp_path / "train_summary.json").write_text("{}")

    monkeypatch.setattr(quality, "launch", launch)
    run = {"max_steps": 100, "evaluations": [evaluation(1.0, steps=50)]}
    options = SimpleNamespace(seconds=20.0, num_evaluations=2)
    quality.train_part(None, options, run, tmp_path, 0)
    assert run["evaluations"] == [] and seen[0]["overwrite_output_dir"] is True and "resume" not in seen[0]
    run["evaluations"] = [evaluation(1.0, steps=50)]
    checkpoint = tmp_path / "checkpoints" / "step_00000050"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    quality.train_part(None, options, run, tmp_path, 0)
    assert len(run["evaluations"]) == 1 and seen[1]["resume"] == "latest" and seen[1]["max_runtime_seconds"] == 10.0


def test_classifier_is_trained_once_and_saved(tmp_path, monkeypatch):
    """It learns a simple rule, and a second call reads the same weights."""
    classifier = module("image_classifier")
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (400,), generator=random)
    images = 0.1 * torch.randn(400, 1, 32, 32, generator=random) + (labels[:, None, None, None] / 5 - 1)
    calls = []

    def load(dataset, split, *rest):
        calls.append(split)
        return images, labels

    monkeypatch.setattr(classifier, "load_labelled", load)
    extractor, facts = classifier.classifier_extractor("somewhere/shades", (1, 32, 32), tmp_path, num_epochs=10)
    assert facts["accuracy"] > 0.5 and calls == ["train", "test"] and "shades" in extractor.name
    assert f"{100 * facts['accuracy']:.1f} % right" in extractor.name and extractor.logits is None
    again, _ = classifier.classifier_extractor("somewhere/shades", (1, 32, 32), tmp_path, num_epochs=10)
    assert len(calls) == 2 and again.weights_sha256 == extractor.weights_sha256
    torch.testing.assert_close(again(images[:5]), extractor(images[:5]))
    with pytest.raises(ValueError, match="num_epochs"):
        classifier.classifier_extractor("somewhere/shades", (1, 32, 32), tmp_path, num_epochs=3)
    assert extractor(images[:5]).shape == (5, classifier.NUM_FEATURES)
