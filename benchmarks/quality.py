"""Compare the sample quality of DDAEBM, Dual-MCMC Teaching and baselines at equal wall clock.

    python benchmarks/quality.py --data digits --seconds 120 --seeds 0 1 2
    python benchmarks/quality.py --data fashion_mnist --seconds 900
    python benchmarks/quality.py --data cifar10_small --seconds 1500 --device cuda --time-limit 540
    python benchmarks/quality.py --data fashion_mnist --methods ddaebm --change batch_size=16 --change ema_decay=0.99

Each contender (`quality_methods.py`) trains for the same time on the same machine, in one process.
The number of steps that fit is estimated by a probe, and then from finished runs, so that the
learning-rate schedule ends with the time. Training is split into `--num-evaluations` parts. After
each part samples are generated and evaluated, and ``results.json`` is written, with each run's
recipe and commit. Runs of different recipes are not averaged. A run on a machine that became slower
takes one part more. The same command resumes where it stopped, and `--time-limit` ends it before a
part that would not fit. With `--change`, one method's recipe is compared with changes to it. AUROC
is the mean over the synthetic OOD sets, of the energy of test images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark_data import DATA, BenchmarkData
from changes import SHIPPED, current_commit
from quality_methods import CONTENDERS, Contender, variants
from quality_report import is_finished, write_report
from tqdm.auto import tqdm

from hf_ebm.evaluation.feature_extractors import FeatureExtractor, FeatureStatistics
from hf_ebm.evaluation.samples import compare
from hf_ebm.hub.model_card import hardware_name
from hf_ebm.training.checkpointing import list_checkpoints
from hf_ebm.training.config import read_yaml
from hf_ebm.utils.files import path_option, whole_file
from hf_ebm.utils.software import software_versions

OTHER_SECONDS = 90  # for --time-limit: first guess of the time of a part, training excluded
MAX_TEST_IMAGES = 500  # of which energies are compared with those of OOD images


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Sample quality of several methods at equal wall clock.")
    parser.add_argument("--data", choices=sorted(DATA), default="digits")
    parser.add_argument("--dataset", help="folder or Hub id of the data (default: the recipe's)")
    parser.add_argument("--methods", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        help="change to the recipe of the only method in --methods: key=value, several in quotes (repeatable)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of each run (default: %(default)s)")
    parser.add_argument("--num-evaluations", type=int, default=4, help="during each training (default: %(default)s)")
    parser.add_argument(
        "--probe-seconds", type=float, default=15.0, help="training time that estimates how many steps fit"
    )
    parser.add_argument(
        "--num-images", type=int, help="samples per evaluation (default: size of the training set, at most 5,000)"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="for sampling (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds after which no training is started")
    parser.add_argument("--output", type=path_option, help="output folder (default: outputs/quality-DATA)")
    options = parser.parse_args()
    if options.seconds <= 0 or options.num_evaluations < 1 or options.probe_seconds <= 0:
        parser.error("--seconds and --probe-seconds must be positive, --num-evaluations at least 1.")
    options.contenders = {name: CONTENDERS[name] for name in options.methods}
    if options.change:
        if len(options.methods) != 1:
            parser.error(f"--change needs one method in --methods, got {' '.join(options.methods)}.")
        try:
            options.contenders = variants(options.methods[0], options.change)
        except ValueError as error:
            parser.error(str(error))
    name = f"{options.methods[0]}-changes-{options.data}" if options.change else options.data
    options.output = options.output or Path(f"outputs/quality-{name}")
    return options


def launch(contender: Contender, arguments: dict[str, Any], options: argparse.Namespace) -> None:
    """Run a training script in its own process, so that memory is measured per run.

    Raises:
        subprocess.CalledProcessError: If it failed. Its message has been printed.
    """
    changes = {**contender.changes, **({"dataset": options.dataset} if options.dataset else {}), **arguments}
    command = [sys.executable, *contender.script, "--config", str(contender.config(options.data))]
    command += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if options.device == "cpu" else {})}
    subprocess.run(command, check=True, env=environment)


def find_max_steps(contender: Contender, options: argparse.Namespace, folder: Path) -> int:
    """Estimate how many steps fit into the time by a short run, without its first steps; its folder is deleted."""
    arguments = {"output_dir": str(folder), "overwrite_output_dir": True, "max_steps": 10**6, "log_every": 1}
    arguments |= {"max_runtime_seconds": options.probe_seconds, "sample_every": 0, "checkpoint_every": 0}
    launch(contender, arguments, options)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    ends = [line["step"] / line["steps_per_second"] for line in lines]  # seconds from the start, step by step
    skipped = min(2, len(lines) - 1)
    rate = (len(lines) - skipped) / (ends[-1] - (ends[skipped - 1] if skipped else 0.0))
    return max(options.num_evaluations, round(rate * options.seconds))


def steps_that_fit(
    contender: Contender, runs: dict[str, dict[str, Any]], options: argparse.Namespace, probe: Path
) -> int:
    """Estimate the steps of a new run by the speed of the contender's last finished run, or by a probe."""
    finished = [run for run in runs.values() if is_finished(run)]
    if not finished:
        return find_max_steps(contender, options, probe)
    seconds = finished[-1]["evaluations"][-1]["training"]["seconds"]
    return max(options.num_evaluations, round(finished[-1]["max_steps"] * options.seconds / seconds))


def train_part(
    contender: Contender, options: argparse.Namespace, run: dict[str, Any], folder: Path, seed: int
) -> dict[str, Any]:
    """Train until the next evaluation, from the start if the run has no checkpoint. Returns the run's summary."""
    if not list_checkpoints(folder / "checkpoints"):
        run["evaluations"].clear()
    arguments: dict[str, Any] = {"output_dir": str(folder), "max_steps": run["max_steps"], "seed": seed}
    arguments |= {"sample_every": 0, "checkpoint_every": 0, "checkpoints_total_limit": 1}
    arguments["max_runtime_seconds"] = options.seconds / options.num_evaluations
    arguments |= {"resume": "latest"} if run["evaluations"] else {"overwrite_output_dir": True}
    launch(contender, arguments, options)
    return json.loads((folder / "train_summary.json").read_text())


def evaluate(
    contender: Contender,
    options: argparse.Namespace,
    folder: Path,
    real: FeatureStatistics,
    extractor: FeatureExtractor,
    num_images: int,
) -> dict[str, Any]:
    """Compute metrics and sampling speed of each of the contender's samplers."""
    found = {}
    for sampler, steps in contender.samplers.items():

        def sample_run(number: int, seed: int, steps: int | None = steps) -> Iterator[torch.Tensor]:
            return contender.sample_run(folder, number, options.batch_size, seed, options.device, steps)

        list(sample_run(min(num_images, options.batch_size), 1))  # first allocations
        batches = sample_run(num_images, 0)  # the pipeline is loaded
        started = time.perf_counter()
        samples = list(batches)
        seconds = time.perf_counter() - started
        generated = FeatureStatistics.of(tqdm(samples, desc=f"features, {sampler}"), extractor)
        found[sampler] = {**compare(real, generated, extractor), "images_per_second": num_images / seconds}
    return found


def evaluate_energies(contender: Contender, folder: Path, data: BenchmarkData, device: str) -> dict[str, float]:
    """AUROC of the trained energy by OOD set; empty for a contender without an energy."""
    if contender.pipeline is None:
        return {}
    pipeline = contender.pipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return data.ood_aurocs(pipeline, MAX_TEST_IMAGES)


def recipe_of(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Settings of a contender, from its config and changes, as JSON keeps them."""
    dataset = {"dataset": options.dataset} if options.dataset else {}
    recipe = {**read_yaml(contender.config(options.data)), **contender.changes, **dataset}
    return json.loads(json.dumps(recipe))


def check_recipe(name: str, run: dict[str, Any], recipe: dict[str, Any], output: Path) -> None:
    """Raise a `SystemExit` if a recorded run had other settings than the current ones."""
    made = run.get("recipe", recipe)
    different = sorted(key for key in {*made, *recipe} if made.get(key) != recipe.get(key))
    if different:
        raise SystemExit(
            f"error: {output}/results.json has runs of {name} with another recipe ({', '.join(different)}: "
            f"{ {key: made.get(key) for key in different} }); choose another --output, or remove those runs from it."
        )


def open_record(options: argparse.Namespace, protocol: dict[str, Any]) -> dict[str, Any]:
    """Load the earlier record, or make an empty one. A record of another protocol is an error."""
    path = options.output / "results.json"
    if not path.is_file():
        return {"protocol": protocol, "real_vs_real": {}, "runs": {}}
    record = json.loads(path.read_text())
    different = [key for key in protocol if record["protocol"].get(key) != protocol[key]]
    if different:
        raise SystemExit(
            f"error: {path} was made with other settings ({', '.join(different)}): "
            f"{ {key: record['protocol'].get(key) for key in different} }; choose another --output."
        )
    return record


def save_record(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Write ``results.json``, its table and its plot."""
    with whole_file(options.output / "results.json") as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    method = record["protocol"].get("method")
    changes = [name for name in record["runs"] if name != SHIPPED]  # earlier commands' included
    write_report(record, CONTENDERS if method is None else variants(method, changes), options.output)


def main() -> None:
    """Train and evaluate what is missing."""
    options, started = parse(), time.perf_counter()
    data = BenchmarkData.open(DATA[options.data], options.dataset, options.output, options.device)
    num_images = options.num_images or data.num_samples(5000)
    protocol = {
        "data": options.data,
        "fingerprint": data.held_out.source["fingerprint"],
        "device": options.device,
        "seconds": options.seconds,
        "num_evaluations": options.num_evaluations,
        "method": options.methods[0] if options.change else None,
        "num_images": num_images,
        "num_reference": len(data.held_out.dataset),
        "batch_size": options.batch_size,
        "feature_extractor": data.extractor.name,
        "weights_sha256": data.extractor.weights_sha256,
        "hardware": hardware_name(),
        "threads": torch.get_num_threads(),
        "software": software_versions(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    record = open_record(options, protocol)
    real = data.statistics(data.held_out)
    if not record["real_vs_real"]:
        record["real_vs_real"] = compare(real, data.statistics(data.training, num_images), data.extractor)
        save_record(record, options)

    needed = options.probe_seconds + options.seconds / options.num_evaluations + OTHER_SECONDS
    failed = []
    for seed in options.seeds:
        for name, contender in options.contenders.items():
            folder = options.output / "runs" / f"{re.sub(r'[^-=.,0-9A-Za-z_]', '_', name)}-{seed}"
            recipe = recipe_of(contender, options)
            for earlier in record["runs"].get(name, {}).values():
                check_recipe(name, earlier, recipe, options.output)
            new = {"evaluations": [], "recipe": recipe, "commit": current_commit()}
            run = record["runs"].setdefault(name, {}).setdefault(str(seed), new)
            while not is_finished(run):
                began = time.perf_counter()
                if began - started + needed > options.time_limit:
                    print(f"the time limit of {options.time_limit:g} s is near; run the same command again to resume")
                    return
                print(f"== {contender.title}, seed {seed}, after {len(run['evaluations'])} evaluations", flush=True)
                try:
                    if "max_steps" not in run:
                        probe = options.output / "probe"
                        run["max_steps"] = steps_that_fit(contender, record["runs"][name], options, probe)
                    summary = train_part(contender, options, run, folder, seed)
                except subprocess.CalledProcessError as error:  # its message has been printed; continue with the others
                    failed.append(f"{name}, seed {seed}: {error}")
                    run["ended_early"] = True
                    save_record(record, options)
                    break
                run.pop("ended_early", None)
                samplers = evaluate(contender, options, folder, real, data.extractor, num_images)
                aurocs = evaluate_energies(contender, folder, data, options.device)
                run["evaluations"].append({"training": summary, "samplers": samplers, "aurocs": aurocs})
                save_record(record, options)
                needed = max(needed, time.perf_counter() - began)
    print((options.output / "table.md").read_text())
    if failed:
        raise SystemExit(
            "error: these runs ended early; run the same command again to retry them:\n" + "\n".join(failed)
        )


if __name__ == "__main__":
    main()
