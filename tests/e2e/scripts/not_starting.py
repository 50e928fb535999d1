"""Keeps mitmproxy from starting as long as the file is there that NOT_STARTING names."""

import logging
import os
from pathlib import Path


class NotStarting:
    """Logs an error at the start, which ends mitmproxy."""

    def running(self) -> None:
        """Look for the file."""
        if Path(os.environ["NOT_STARTING"]).exists():
            logging.getLogger("not_starting").error("this worker does not start")


addons = [NotStarting()]
