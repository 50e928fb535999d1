"""How many files and sockets this process may have open at once."""

from contextlib import suppress

# Where the hard limit is "unlimited", or higher than any proxy needs.
_ENOUGH = 1024 * 1024


def raise_limit() -> None:
    """Raise the soft limit to the hard one; children inherit it.

    Each connection takes two. The soft limit of 1024 is meant for programs that call select(2).
    """
    try:
        import resource  # noqa: PLC0415 (not on Windows)
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Refused where the kernel knows a lower limit than it tells (macOS).
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
