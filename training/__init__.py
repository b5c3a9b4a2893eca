"""Training: one script per method, its configs, and what the scripts share."""

from pathlib import Path

METHODS = tuple(sorted(path.stem.removeprefix("train_") for path in Path(__file__).parent.glob("train_*.py")))
