"""The commands of ``hf-ebm``, one file each with ``add_parser`` and ``run``; `options` and `images` are shared.

Heavy libraries are imported when a command runs.
"""
