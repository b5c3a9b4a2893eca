"""Training objectives, one file per method; every term is one pure function of tensors and callables."""
