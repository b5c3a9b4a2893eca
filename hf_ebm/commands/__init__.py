"""The commands of ``hf-ebm``, one file each: ``add_parser`` and ``run``. Heavy imports wait until a command runs."""
