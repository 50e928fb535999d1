"""Which destinations are the proxy's own port."""

import pytest

from pointsman.proxy.redirected import leads_here

PORT = 15001


@pytest.mark.parametrize(
    ("destination", "here", "own"),
    [
        ("10.79.0.1", "10.79.0.1", True),
        ("10.79.0.1", "::ffff:10.79.0.1", True),
        ("fe80::1%eth0", "fe80::1", True),
        ("127.0.0.2", "127.0.0.1", True),
        # Of addresses for documentation (RFC 5737, RFC 3849) this machine has none.
        ("192.0.2.7", "127.0.0.1", False),
        ("2001:db8::7", "::1", False),
    ],
)
def test_the_own_port_at_an_own_address_is_here(destination: str, here: str, own: bool) -> None:
    assert leads_here((destination, PORT), (here, PORT)) is own
    assert not leads_here((destination, 443), (here, PORT))
