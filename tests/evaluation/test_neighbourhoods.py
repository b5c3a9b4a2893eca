"""Precision, recall, density, coverage: equal, disjoint and nested sets, and a case by hand."""

import pytest
import torch

from hf_ebm.evaluation import sample_metrics as neighbourhoods
from hf_ebm.evaluation.sample_metrics import ball_radii, neighbourhood_metrics


@pytest.fixture
def points():
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def test_a_set_and_itself_and_a_set_far_away(points):
    for k in (1, 5):
        same = neighbourhood_metrics(points, points, k)
        assert same == pytest.approx(dict.fromkeys(("precision", "recall", "density", "coverage"), 1.0))
        apart = neighbourhood_metrics(points, points + 1000.0, k)
        assert apart == dict.fromkeys(("precision", "recall", "density", "coverage"), 0.0)


def test_radii_are_distances_to_the_kth_other_point():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert ball_radii(line, 1).tolist() == [1.0, 1.0, 2.0, 4.0]
    assert ball_radii(line, 2).tolist() == [3.0, 2.0, 3.0, 6.0]


def test_by_hand():
    """Real 0, 1, 3, 7 with k = 1: balls (-1, 1), (0, 2), (1, 5), (3, 11). Generated 0.5, 4, 20: radii 3.5, 3.5, 16."""
    real, generated = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([[0.5], [4.0], [20.0]])
    found = neighbourhood_metrics(real, generated, 1)
    # 0.5 lies in the first two balls, 4 in the last two, 20 in none
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["density"] == pytest.approx(4 / 3)
    assert found["coverage"] == 1.0
    # balls of the generated: (-3, 4), (0.5, 7.5), (4, 36): all real points are held
    assert found["recall"] == 1.0
    assert neighbourhood_metrics(generated, real, 1)["precision"] == found["recall"]


def test_balls_are_open():
    """The generated balls (-2, 2) and (0, 4) do not hold their ends; nor do the real ones (-8, 4), (-2, 10)."""
    real, generated = torch.tensor([[-2.0], [4.0]]), torch.tensor([[0.0], [2.0]])
    assert neighbourhood_metrics(real, generated, 1)["recall"] == 0.0
    assert neighbourhood_metrics(real, real + 6.0, 1)["precision"] == 0.5  # 4 lies in the second, 10 in none


def test_one_mode_of_two_is_precise_and_half_recalled():
    random = torch.Generator().manual_seed(1)
    real = torch.cat([torch.randn(200, 2, generator=random), torch.randn(200, 2, generator=random) + 50.0])
    found = neighbourhood_metrics(real, torch.randn(400, 2, generator=random))
    assert found["precision"] > 0.9 and 0.4 < found["recall"] <= 0.5 and 0.4 < found["coverage"] <= 0.5
    assert found["density"] == pytest.approx(1.0, abs=0.15)


def test_rows_at_a_time_change_nothing(points, monkeypatch):
    generated = torch.randn(33, 4, generator=torch.Generator().manual_seed(2)) * 1.3
    whole = neighbourhood_metrics(points, generated, 3)
    monkeypatch.setattr(neighbourhoods, "ROWS_AT_A_TIME", 7)
    assert neighbourhood_metrics(points, generated, 3) == whole


def test_too_few_points(points):
    with pytest.raises(ValueError, match="generated must hold more than num_neighbours=5 images"):
        neighbourhood_metrics(points, points[:5])
