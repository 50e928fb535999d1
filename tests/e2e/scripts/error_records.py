"""Repeats error records on standard error, by their level: mitmdump's lines do not tell it."""

import logging
import sys

_handler = logging.StreamHandler(sys.stderr)
_handler.setLevel(logging.ERROR)
_handler.setFormatter(logging.Formatter("ERROR %(name)s: %(message)s"))
logging.getLogger().addHandler(_handler)
