"""What a command's exit code says: 0 if all went well, 2 for a mistake of the caller, 130 for Ctrl-C, else 1."""

from __future__ import annotations

import errno

CALLERS_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # the last as shells have it: 128 + SIGINT
NOT_THE_CALLERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def exit_code(error: Exception) -> int:
    """2 for what the caller can put right in the command, 1 for a full disk, no network, a missing package, ..."""
    is_broken = isinstance(error, OSError) and error.errno in NOT_THE_CALLERS
    is_failure = is_broken or isinstance(error, ImportError | ConnectionError)
    return FAILURE if is_failure else CALLERS_MISTAKE
