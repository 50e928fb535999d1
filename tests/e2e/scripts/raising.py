"""An addon of the user's own that fails in every hook a request comes by."""

from mitmproxy import http


class Raising:
    """Raises, always."""

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Fail."""
        raise RuntimeError("an addon fails on purpose")

    def request(self, flow: http.HTTPFlow) -> None:
        """Fail."""
        raise RuntimeError("an addon fails on purpose")

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Fail."""
        raise RuntimeError("an addon fails on purpose")

    def response(self, flow: http.HTTPFlow) -> None:
        """Fail."""
        raise RuntimeError("an addon fails on purpose")


addons = [Raising()]
