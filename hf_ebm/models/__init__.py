"""Networks, one per file. Module paths are part of the file format (`model_index.json`): they never move."""
