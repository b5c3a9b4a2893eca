"""Networks, one per file. Module paths are part of the file format (`model_index.json`): they never move.

Importing this package registers every energy, so that transformers' `AutoConfig`, `AutoModel` and `AutoImageProcessor`
load our repositories. Importing any pipeline does so too.
"""

from hf_ebm.models import mlp_energy as mlp_energy
from hf_ebm.models import resnet_energy as resnet_energy
from hf_ebm.models import unet_energy as unet_energy
