"""Our own faults in the log: where and what they were, without their messages.

A message may quote a request or an answer. It imports no mitmproxy.
"""

import logging
import traceback


def describe(fault: BaseException) -> str:
    """Return where and what a fault was, without its message."""
    frames = "".join(traceback.format_tb(fault.__traceback__))
    return f"{frames}{type(fault).__name__}"


def log_fault(logger: logging.Logger, what: str, fault: BaseException) -> None:
    """Log an error: what came of the fault, and the fault itself."""
    logger.error("%s\n%s", what, describe(fault))
