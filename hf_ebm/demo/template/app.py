"""The hf-ebm demo of one model: the Space's variable HF_EBM_MODEL, or the id in model.txt."""

import os
from pathlib import Path

from hf_ebm.demo.server import serve

model = os.environ.get("HF_EBM_MODEL") or Path(__file__).with_name("model.txt").read_text(encoding="utf-8").strip()
try:
    serve(model)
except (ValueError, OSError) as error:  # one line in the Space's log, as the command has
    raise SystemExit(f"hf-ebm: error: {' '.join(str(error).split())}") from error
