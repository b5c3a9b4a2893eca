"""A Gradio demo of a model: generate, check, reconstruct and interpolate images. Needs the extra ``demo``.

`server.serve` runs it locally or in a Space; `push.push_space` creates a Space from ``template/`` and this package.
The server enforces the bounds of `limits` on everything a visitor sends.
"""
