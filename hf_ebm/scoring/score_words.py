"""The scores in words, for a reader of a model card or of the demo's page."""

SCORE_WORDS = {
    "energy": "the model's own number",
    "gradient_norm": "how steep the energy is at the picture",
    "multiscale": "the energies at all noise levels",
    "typicality": "how far from the usual energy, either way",
    "complexity": "the energy against how simple the picture is",
    "reconstruction": "how badly it is rebuilt",
    "combined": "energy and reconstruction",
}
