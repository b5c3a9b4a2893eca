"""Networks, one per file. Module paths are part of the file format (`model_index.json`): they never move.

Importing this package registers every energy, so that transformers' `AutoConfig`, `AutoModel` and `AutoImageProcessor`
load our repositories. Importing any pipeline does so too.
"""

import importlib

from hf_ebm import EXPORTS

for _name, _module in EXPORTS.items():
    if _name.endswith("EnergyModel"):
        importlib.import_module(_module)
