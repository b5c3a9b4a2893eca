"""The commands of ``hf-ebm``, one file each: ``add_parser`` and ``run``; shared are ``options`` and ``models``.

Heavy imports wait until a command runs.
"""
