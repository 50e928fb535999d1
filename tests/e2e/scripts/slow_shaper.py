"""Makes it take a while to give an answer its shape."""

import time

from pointsman.proxy.shaping import Shaped, Shaper

SECONDS = 0.3
_close = Shaper.close


def _slowly(self: Shaper) -> Shaped:
    time.sleep(SECONDS)
    return _close(self)


Shaper.close = _slowly  # type: ignore[method-assign]
