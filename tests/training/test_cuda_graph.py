"""The train step as a CUDA graph: when it is used, and its inputs. No GPU is needed: the recorder is replaced."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from small_runs import assert_same_run

from hf_ebm.training import cuda_graph
from hf_ebm.training.train_ddaebm import METHOD

GPU = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
SETTINGS = {"mixed_precision": "bf16", "class_conditional": False, "pseudo_labels": 0}


@pytest.mark.parametrize(
    ("accelerator", "settings", "reason"),
    [
        ({}, {}, None),
        ({}, {"mixed_precision": "no"}, None),
        ({"device": torch.device("cpu")}, {}, "it needs a CUDA GPU, and this run is on 'cpu'"),
        ({"num_processes": 2}, {}, "it needs one process, and there are 2"),
        ({}, {"mixed_precision": "fp16"}, "mixed_precision=fp16"),
        ({}, {"class_conditional": True}, "a step with labels is not recorded"),
    ],
)
def test_where_it_can_be_used(accelerator, settings, reason):
    found = cuda_graph.why_no_cuda_graph(
        SimpleNamespace(**{**SETTINGS, **settings}), SimpleNamespace(**{**vars(GPU), **accelerator})
    )
    assert found is None if reason is None else reason in found


def test_without_a_gpu_it_is_reported_and_changes_nothing(tmp_path, script, capsys):
    script.train(tmp_path / "graph", cuda_graph=True)
    assert (
        "note: cuda_graph has no effect here: it needs a CUDA GPU, and this run is on 'cpu'." in capsys.readouterr().out
    )
    script.train(tmp_path / "eager")
    assert_same_run(tmp_path / "graph", tmp_path / "eager")


class Recorder:
    """What torch.cuda offers, on the CPU: inside `graph`, a step's launches are kept, and `replay` does them again."""

    def __init__(self, monkeypatch):
        self.recording = None
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Stream": lambda device: stream,
            "current_stream": lambda device: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": self.Graph,
            "graph": self.record,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    class Graph:
        def replay(self):
            self.launches()

    @contextlib.contextmanager
    def record(self, graph, stream, capture_error_mode):
        self.recording = graph
        yield
        self.recording = None


def test_each_kind_of_step_is_recorded_once_and_reads_each_batch(monkeypatch):
    recorder, done = Recorder(monkeypatch), []

    def train_step(x, step, state, settings):
        total = torch.zeros(())
        graph, kind = recorder.recording, step % 2

        def launches():
            done.append((kind, graph is not None))
            total.copy_(x.sum() * state.optimizer.param_groups[0]["lr"])

        if graph is None:
            launches()
        else:  # a recorded operation is not done
            graph.launches = launches
        return {"total": total}

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    state = SimpleNamespace(optimizer=optimizer)
    step_of = cuda_graph.GraphedStep(train_step, lambda step, settings: step % 2, state, torch.device("cpu"))
    for step in range(12):
        if step == 10:
            optimizer.param_groups[0]["lr"].fill_(2.0)  # as a schedule does
        terms = step_of(torch.full((3,), float(step)), step, state, None)
        assert terms["total"] == 3 * step * (0.5 if step < 10 else 2.0)
    assert optimizer.param_groups[0]["capturable"] is True
    assert done == [(step % 2, step >= 2 * cuda_graph.NUM_EAGER) for step in range(12)]
    assert len(step_of.graphs) == 2


def test_lazy_r1_has_two_kinds_of_steps():
    settings = SimpleNamespace(r1_interval=4)
    assert [METHOD.step_kind(step, settings) for step in range(5)] == [True, False, False, False, True]
