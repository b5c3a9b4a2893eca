"""``compile=true``: the training step runs through TorchDynamo and learns as the eager one.

The graphs are run as they were traced (the backend ``"eager"``), so that no compiler is needed.
"""

import json

import pytest
import torch


def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path, script, monkeypatch):
    compiled, traced = [], []
    plain = torch.nn.Module.compile

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    def compile_with(module, *args, **kwargs):
        compiled.append(type(module).__name__)
        plain(module, *args, backend=backend, **kwargs)

    options = {"max_steps": 3, "checkpoint_every": 0}
    eager = script.train(tmp_path / "eager", **options)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    torch.compiler.reset()
    folder = script.train(tmp_path / "compiled", compile=True, **options)
    torch.compiler.reset()
    assert len(compiled) >= 2 and traced
    eager_lines, lines = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (eager, folder)
    )
    assert len(lines) == 3
    for line, expected in zip(lines, eager_lines, strict=True):  # a bias before batch norm is rounding's: no weights
        line.pop("steps_per_second"), expected.pop("steps_per_second")
        assert line == pytest.approx(expected, rel=1e-3)
