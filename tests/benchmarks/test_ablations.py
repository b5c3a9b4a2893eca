"""Rows of the ablation tables are evaluated as in the demo, and an interrupted table resumes."""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from hf_ebm import DDAEBMPipeline, DDAEBMScheduler, DualMCMCPipeline, LangevinScheduler
from hf_ebm.data.digits import load_digits
from hf_ebm.data.image_processor import to_model_range
from hf_ebm.models.dual_mcmc_presets import build_dual_mcmc_models, dual_mcmc_model_settings
from hf_ebm.models.presets import build_ddaebm_models, ddaebm_model_settings
from hf_ebm.training.digits_demo import evaluate_chains, evaluate_digits

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _plain_modules(monkeypatch):
    """The benchmarks import each other as plain modules."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def open_digits(tmp_path):
    benchmark_data = importlib.import_module("benchmark_data")
    return benchmark_data.BenchmarkData.open(benchmark_data.DATA["digits"], None, tmp_path, "cpu")


def pipelines(method):
    torch.manual_seed(0)
    if method == "ddaebm":
        generator, energy, inference = build_ddaebm_models(ddaebm_model_settings("digits"))
        return DDAEBMPipeline(generator, DDAEBMScheduler(), energy, inference)
    generator, energy, inference = build_dual_mcmc_models(dual_mcmc_model_settings("digits"))
    x_chain, z_chain = LangevinScheduler(2, 0.5, 0.01), LangevinScheduler(2, 0.1, 0.1)
    return DualMCMCPipeline(generator, x_chain, energy, inference, z_chain)


@torch.no_grad()
def error_of_means(pipeline):
    """Of reconstructions from the inference model's mean, per pixel."""
    digits = to_model_range(load_digits("test")[0])
    z = pipeline.inference_model.eval()(digits).mean
    return (pipeline.generator_model.eval()(z).sample - digits).square().mean().item()


@pytest.mark.parametrize("method", ["ddaebm", "dual_mcmc"])
def test_a_row_is_evaluated_as_in_the_demo(tmp_path, method):
    pipeline = pipelines(method)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "run")
    row = importlib.import_module(f"{method}_ablations").evaluate(tmp_path / "run", {}, open_digits(tmp_path), "cpu")
    metrics = evaluate_digits(pipeline)[0]
    assert row["frechet_distance"] == pytest.approx(metrics["frechet_distance"]["samples"], rel=1e-4)
    for name in ("noise", "inverted"):
        assert row[f"auroc_{name}"] == pytest.approx(metrics["auroc"][name], abs=1e-6)
    if method == "dual_mcmc":
        chains = evaluate_chains(pipeline, tmp_path)
        assert row["generator_alone"] == pytest.approx(chains["generator_alone"], rel=1e-4)
        assert row["mse_inference"] == pytest.approx(chains["reconstruction_mse"]["inference_model"], rel=1e-4)
        assert chains["reconstruction_mse"]["inference_mean"] == pytest.approx(error_of_means(pipeline), rel=1e-4)
        assert row["mse_z_chain"] == pytest.approx(chains["reconstruction_mse"]["z_chain"], rel=1e-4)


def test_the_table_resumes_and_names_diverged_runs(tmp_path, monkeypatch):
    """Rows that are there are not run again; a run that its guard stopped is a row without numbers."""
    ablations = importlib.import_module("ablations")
    ran = []

    def run_row(method, config, arguments):
        ran.append((arguments.get("rate"), arguments["seed"]))
        Path(arguments["output_dir"]).mkdir(parents=True)
        return arguments.get("rate") != 9

    monkeypatch.setattr(ablations, "run_row", run_row)
    distances = iter([4.0, 6.0, 8.0])

    def table(*seeds):
        arguments = ["ablations", "--output", str(tmp_path), "--max-steps", "7", "--seeds", *seeds]
        monkeypatch.setattr(sys, "argv", arguments)
        evaluate = lambda *_: {"fd": next(distances)}  # noqa: E731
        groups = {"shipped": [{}], "rate": [{"rate": 9}]}
        ablations.make_table("ddaebm", "doc", groups, {"fd": ("FD", 1)}, evaluate, lambda *_: None)
        return (tmp_path / "table.md").read_text().splitlines()[2:]

    assert table("0") == ["| `as shipped` | 1 | 4.0 |", "| `rate=9` | 0, 1 diverged |  |"]
    assert table("0", "1") == ["| `as shipped` | 2 | 5.0 ± 1.4 |", "| `rate=9` | 0, 2 diverged |  |"]
    assert ran == [(None, 0), (9, 0), (None, 1), (9, 1)]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["protocol"]["config"] == "ddaebm_digits.yaml" and saved["protocol"]["recipe"]["batch_size"] == 32
    assert len(saved["commits"]) == 1 and saved["protocol"]["fingerprint"]
    monkeypatch.setattr(ablations, "launch_options", lambda: (["--num_processes", "7"], {}))
    with pytest.raises(SystemExit, match=r"was made with \{'launch': .*, not \{'launch': \['--num_processes', '7'\]\}"):
        table("2")


def test_a_run_stopped_by_its_guard_is_distinguished_from_a_failed_one(tmp_path, monkeypatch):
    ablations = importlib.import_module("ablations")
    arguments = {"max_steps": 1, "batch_size": 8, "x_num_steps": 1, "z_num_steps": 1, "sample_every": 0}

    def run_row(name, **changes):
        changes["output_dir"] = str(tmp_path / name)
        return ablations.run_row("dual_mcmc", "dual_mcmc_digits.yaml", {**arguments, **changes})

    def run_here(command, env, stderr, text):
        """What `accelerate launch` starts, in this process."""
        assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
        options = launch_command_parser().parse_args(command[3:])
        assert options.module and options.training_script == "hf_ebm.training.train_dual_mcmc"
        written, ended = io.StringIO(), 0
        with contextlib.redirect_stderr(written):
            try:
                importlib.import_module(options.training_script).main(options.training_script_args)
            except SystemExit as end:
                ended = end.code
                written.write(end.code if isinstance(end.code, str) else "")
        return SimpleNamespace(returncode=ended, stderr=written.getvalue())

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run_here, PIPE=None))
    assert run_row("whole") is True
    assert run_row("stopped", energy_gap_limit=1e-9) is False
    with pytest.raises(SystemExit, match="'max_stepz'"):
        run_row("wrong", max_stepz=1)


def test_rows_of_the_command_line(tmp_path):
    ablations = importlib.import_module("ablations")
    groups = {"shipped": [{}], "rate": [{"rate": 9}, {"rate": 8}]}
    assert ablations.chosen_rows(groups, None, []) == [{}, {"rate": 9}, {"rate": 8}]
    assert ablations.chosen_rows(groups, ["rate"], ["lr=1"]) == [{"rate": 9}, {"rate": 8}, {"lr": "1"}]
    alone = ablations.chosen_rows(groups, None, ["lr=1 betas=[0.5,0.9]"])
    assert [ablations.name_of(row) for row in alone] == ["as shipped", "lr=1 betas=[0.5,0.9]"]
    with pytest.raises(ValueError, match="must be key=value"):
        ablations.chosen_rows(groups, None, ["lr"])


def test_the_figure_shows_what_there_is(tmp_path, monkeypatch):
    """A table of some rows still has its figure, and a diverged run is left out."""
    negatives = {"frechet_distance": 4.0, "generator_alone": 5.0}
    results = {"energy_negatives=second_chain": {"0": negatives}, "energy_negatives=generator": {"0": {}}}
    script, figures = importlib.import_module("dual_mcmc_ablations"), []
    new_figure = script.new_figure
    monkeypatch.setattr(script, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[0])
    script.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
    drawn = [collection.get_offsets().tolist() for collection in figures[0].axes[2].collections]
    assert [marks for marks in drawn if marks] == [[[0.0, 4.0]], [[0.0, 5.0]]]
