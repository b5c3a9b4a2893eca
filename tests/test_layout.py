"""The package's rooms and the order in which they may import each other."""

import ast
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = [  # a room imports only from rooms above it, and from itself
    {"utils"},
    {"hub"},
    {"data"},
    {"diffusion"},
    {"langevin"},
    {"losses", "models", "schedulers"},
    {"scoring"},
    {"pipelines"},
    {"evaluation", "likelihood"},
    {"training"},
    {"cli", "demo"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
TOP_LEVEL = {"__init__.py", "py.typed", "diffusion.py", "langevin.py", "model_cards", *RANK} - {"diffusion", "langevin"}


def imported_modules(path: Path) -> list[str]:
    """Full names of the hf_ebm modules that a file imports, function bodies included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "hf_ebm":
            found += [f"hf_ebm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module or "")
    return [name for name in found if name.startswith("hf_ebm.")]


def modules() -> dict[Path, str]:
    """Every module of the package, through the links, and its room."""
    found = {}
    for folder, _, names in os.walk(ROOT / "hf_ebm", followlinks=True):
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and "template" not in path.parts:
                found[path] = path.relative_to(ROOT / "hf_ebm").parts[0].removesuffix(".py")
    return found


def test_rooms_import_only_from_lower_ones():
    wrong = []
    for path, room in modules().items():
        if room in ("__init__", "model_cards"):
            continue
        for name in imported_modules(path):
            other = name.split(".")[1]
            if other in RANK and other != room and RANK[other] >= RANK[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_nothing_lies_loose():
    found = {path.name for path in (ROOT / "hf_ebm").iterdir() if path.name != "__pycache__"}
    assert found <= TOP_LEVEL
    assert len(list((ROOT / "hf_ebm" / "utils").glob("*.py"))) <= 6  # __init__ and five modules


def test_scripts_are_not_imported():
    """No module of the package imports a training script."""
    scripts = {f"hf_ebm.training.{path.stem}" for path in (ROOT / "training").glob("train_*.py")}
    for path in modules():
        assert not scripts & set(imported_modules(path)), path
