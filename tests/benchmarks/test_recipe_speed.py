"""Speed of recipes: each variant trains with its own settings; incomparable variants are errors."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["models.unet.base_channels=8", "batch_size=4"]


@pytest.fixture
def recipe_speed(monkeypatch):
    """``recipe_speed(*arguments)`` runs the script."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    module = importlib.import_module("recipe_speed")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["recipe_speed.py", *arguments, "--device", "cpu"])
        module.main()

    return run


def test_every_variant_is_timed_beside_the_recipe(recipe_speed, tmp_path, capsys):
    smaller, doubled = " ".join(TINY), " ".join([*TINY, "batch_size=8"])
    changes = [argument for change in (smaller, doubled) for argument in ("--change", change)]
    out = str(tmp_path / "x.json")
    recipe_speed("ddaebm", *changes, "--repeats", "2", "--warmup", "0", "--json", out)
    record = json.loads(Path(out).read_text())
    assert list(record["wall_seconds"]) == ["as shipped", smaller, doubled]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in record["wall_seconds"].values())
    for name, batch in ((smaller, 4), (doubled, 8)):
        seconds, shipped = (record["wall_seconds"][key] for key in (name, "as shipped"))
        rates = [4 * batch / second for second in seconds]
        assert record["results"][f"images/s, {name}"]["median"] == pytest.approx(sum(rates) / 2)
        ratios = [batch / 32 * one / other for one, other in zip(shipped, seconds, strict=True)]
        assert record["results"][f"speed-up, {name}"]["median"] == pytest.approx(sum(ratios) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--round-steps", "3"], "--round-steps must be a multiple of r1_interval=4, got 3"),
        (["--change", "r1_intervall=2"], "did you mean r1_interval"),
        (["--change", "mixed_precision=bf16", "--change", "mixed_precision=fp16"], "only one can be timed at once"),
    ],
)
def test_mistakes(recipe_speed, arguments, message):
    with pytest.raises(SystemExit, match=message):
        recipe_speed("ddaebm", *arguments)
