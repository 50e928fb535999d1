"""TLS to providers that have settings of their own: a CA file, or no verification."""

from functools import lru_cache
from pathlib import Path

from mitmproxy import ctx, tls
from mitmproxy.addons.tlsconfig import TlsConfig
from OpenSSL import SSL

from pointsman.config.table import TlsSettings


def start_tls(tls_start: tls.TlsData, settings: TlsSettings) -> None:
    """Set up a connection's TLS where the settings ask for it; else mitmproxy's options hold.

    mitmproxy builds the connection (SNI, name check, versions); only whom to trust is replaced.
    """
    if settings.verify and settings.ca_file is None:
        return
    builder: TlsConfig = ctx.master.addons.get("tlsconfig")
    builder.tls_start_server(tls_start)
    ssl_conn = tls_start.ssl_conn
    if ssl_conn is None:
        return
    if not settings.verify:
        ssl_conn.set_verify(SSL.VERIFY_NONE)
    elif settings.ca_file is not None:
        changed = Path(settings.ca_file).stat().st_mtime_ns
        ssl_conn.set_context(_trusting(settings.ca_file, changed))
        ssl_conn.set_verify(SSL.VERIFY_PEER)


@lru_cache(maxsize=64)
def _trusting(ca_file: str, _changed: int) -> SSL.Context:
    """Return a context that trusts the file's certificates alone; loaded anew when it changes."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(ca_file)
    return context
