"""What stands behind the masks that flows show of their clients' own keys.

In a UI alone, and in memory alone: a flow that is replayed to a provider without `configs` needs
the client's key again.
"""

from collections import OrderedDict
from collections.abc import Mapping

type Masked = Mapping[tuple[bytes, bytes], bytes]  # (header name, mask) → value

_MOST = 5000


class OwnKeys:
    """The keys of the latest flows, by the flow's id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Masked] = OrderedDict()

    def keep(self, flow: str, masked: Masked) -> None:
        """Remember what stands behind the masks of a flow."""
        self._kept[flow] = dict(masked)
        self._kept.move_to_end(flow)
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    def of(self, flow: str) -> Masked:
        """Return what stands behind the masks of a flow; nothing where it is not known."""
        return self._kept.get(flow, {})
