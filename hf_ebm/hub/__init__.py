"""Thin layers on huggingface_hub: download, upload, model cards."""
