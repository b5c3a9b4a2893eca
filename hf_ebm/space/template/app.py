"""The demo of a model of hf-ebm. Which one: the Space's variable HF_EBM_MODEL, or the id in model.txt."""

import os
from pathlib import Path

from hf_ebm.space.server import serve

serve(os.environ.get("HF_EBM_MODEL") or Path(__file__).with_name("model.txt").read_text(encoding="utf-8").strip())
