"""Shared code of the ablation tables: train changed settings over seeds, evaluate them, and write a table.

A row is a training run of a shipped config with the row's changes and fewer steps, launched as in
the demo. Runs in ``results.json`` are not repeated, so an interrupted command resumes. A run that
its own guard stopped is a row without numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_data import DATA, BenchmarkData
from changes import SHIPPED, current_commit, split_change

from hf_ebm.hub.model_card import hardware_name
from hf_ebm.training.config import CONFIGS, read_yaml
from hf_ebm.training.digits_demo import launch_options
from hf_ebm.training.launch import DIVERGED
from hf_ebm.utils.files import path_option, whole_file
from hf_ebm.utils.software import software_versions

Changes = dict[str, Any]
Row = dict[str, float]  # metrics of a run; empty if its guard stopped it
Results = dict[str, dict[str, Row]]  # {row's name: {seed: row}}
Evaluate = Callable[[Path, Changes, BenchmarkData, str], Row]
MAX_SAMPLES, MAX_TEST_IMAGES = 2000, 1000  # generated and scored for a row


def name_of(changes: Changes) -> str:
    """The name of a row: the arguments it passes."""
    return " ".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in changes.items()) or SHIPPED


def run_row(method: str, config: str, arguments: dict[str, Any]) -> bool:
    """Train a config with `arguments`. Returns False if the run's own guard stopped it."""
    launcher, environment = launch_options()
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "-m", f"hf_ebm.training.train_{method}"]
    command += ["--config", str(CONFIGS / config)]
    command += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in arguments.items()]
    finished = subprocess.run(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    if finished.returncode and DIVERGED not in finished.stderr:
        raise SystemExit(f"error: {' '.join(command)} ended with {finished.returncode}:\n{finished.stderr}")
    return finished.returncode == 0


def cell(values: list[float], digits: int) -> str:
    """``mean``, or ``mean ± standard deviation`` of several seeds."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def write_table(results: Results, columns: dict[str, tuple[str, int]], path: Path) -> None:
    """Write all rows as a Markdown table; `columns` are ``{key: (heading, digits)}``."""
    lines = ["| change | seeds | " + " | ".join(heading for heading, _ in columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name, rows in results.items():
        measured = [row for row in rows.values() if row]
        seeds = (
            str(len(measured))
            if len(measured) == len(rows)
            else f"{len(measured)}, {len(rows) - len(measured)} diverged"
        )
        cells = [
            cell([row[key] for row in measured], digits) if measured else "" for key, (_, digits) in columns.items()
        ]
        lines.append(f"| `{name}` | {seeds} | " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def chosen_rows(groups: dict[str, list[Changes]], names: list[str] | None, own: list[str]) -> list[Changes]:
    """The config as shipped, the rows of the named groups (None: all), and those of ``--change``.

    Raises:
        ValueError: If a change is not ``key=value``.
    """
    if own and names is None:
        chosen: list[Changes] = [{}]
    else:
        chosen = [row for group in (groups if names is None else names) for row in groups[group]]
    return chosen + [dict(pair.split("=", 1) for pair in split_change(change)) for change in own]


def make_table(
    method: str,
    doc: str,
    groups: dict[str, list[Changes]],
    columns: dict[str, tuple[str, int]],
    evaluate: Evaluate,
    plot: Callable[[Results, Path], None],
) -> None:
    """Parse the command line, run what is missing, write ``results.json``, ``table.md`` and ``ablations.png``.

    Args:
        method: A training script's name.
        doc: The command's description.
        groups: Rows by group; ``--rows`` chooses groups, ``--change`` adds a row.
        columns: Columns of the table, ``{key: (heading, digits)}``.
        evaluate: ``(run folder, changes, data, device) -> row``.
        plot: ``(results, path) -> None``, of the groups' rows.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--data", choices=sorted(DATA), default="digits", help="which recipe (default: %(default)s)")
    parser.add_argument("--dataset", help="folder or Hub id of the data (default: the recipe's)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", default=default, choices=("cpu", "cuda"), help="for the evaluation; training takes a GPU"
    )
    parser.add_argument("--output", type=path_option, default=Path(f"outputs/{method.replace('_', '-')}-ablations"))
    parser.add_argument(
        "--rows", nargs="+", choices=sorted(groups), help="groups of rows (default: all; none with --change)"
    )
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        help="an additional row: key=value, several in quotes (repeatable)",
    )
    parser.add_argument("--max-steps", type=int, default=200, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    try:
        chosen = chosen_rows(groups, options.rows, options.change)
    except ValueError as error:
        parser.error(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "results.json"
    data = BenchmarkData.open(DATA[options.data], options.dataset, options.output, options.device)
    config = f"{method}_{options.data}.yaml"
    launcher, _ = launch_options()
    protocol = {
        "max_steps": options.max_steps,
        "config": config,
        "recipe": read_yaml(CONFIGS / config),
        "fingerprint": data.held_out.source["fingerprint"],
        "device": options.device,
        "launch": launcher,  # number of processes, each with its batch
        "hardware": hardware_name(),
        "software": software_versions(),
    }
    protocol = json.loads(json.dumps(protocol))
    saved = json.loads(record.read_text()) if record.is_file() else {"protocol": protocol, "commits": [], "rows": {}}
    different = sorted(key for key in protocol if saved["protocol"].get(key) != protocol[key])
    if different:
        made, now = ({key: told.get(key) for key in different} for told in (saved["protocol"], protocol))
        raise SystemExit(f"error: {record} was made with {made}, not {now}; choose another --output.")
    results: Results = saved["rows"]
    if (commit := current_commit()) not in saved["commits"]:
        saved["commits"].append(commit)
    folder = options.output / "run"
    fixed: dict[str, Any] = {"max_steps": options.max_steps, "output_dir": str(folder), "overwrite_output_dir": True}
    fixed |= {"sample_every": 0, "checkpoint_every": 0, **({"dataset": options.dataset} if options.dataset else {})}
    for seed in options.seeds:
        for changes in chosen:
            rows = results.setdefault(name_of(changes), {})
            if str(seed) in rows:
                continue
            print(f"== {name_of(changes)}, seed {seed}", flush=True)
            started = time.perf_counter()
            trained = run_row(method, config, {**changes, **fixed, "seed": seed})
            rows[str(seed)] = evaluate(folder, changes, data, options.device) if trained else {}
            shutil.rmtree(folder)
            print(f"{time.perf_counter() - started:.0f} s: {rows[str(seed)] or 'diverged'}", flush=True)
            with whole_file(record) as path:
                path.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    write_table(results, columns, options.output / "table.md")
    if options.rows is not None or not options.change:
        plot(results, options.output / "ablations.png")
    print((options.output / "table.md").read_text())
