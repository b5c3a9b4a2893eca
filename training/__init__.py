"""Training: one script per method, its configs, and what the scripts share."""

METHODS = ("ddaebm", "dual_mcmc")  # each with a script ``train_<method>.py``
