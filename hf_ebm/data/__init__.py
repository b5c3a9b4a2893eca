"""Data: the embedded sets, Hub data sets and image folders."""

from hf_ebm.data.digits import load_digits as load_digits
from hf_ebm.data.toy import sample_toy as sample_toy
