"""What is said where a directory can't be written to: no room is another trouble than no right."""

import errno

_FULL = {errno.ENOSPC, errno.EDQUOT}


def mend(error: OSError) -> str:
    """Return what to do about a directory that could not be written to."""
    if error.errno in _FULL:
        return "make room there, or make its volume larger (in Kubernetes: sizeLimit)"
    return "make it a directory that this user may write to, such as an emptyDir volume"
