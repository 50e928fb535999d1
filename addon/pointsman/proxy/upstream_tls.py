"""TLS to providers: mitmproxy's, but that a provider may have a CA file or no verification.

It is a layer and no hook: when a hook raises, mitmproxy goes on with whom it trusts itself, and the
provider's key would go there.
"""

from functools import lru_cache

from mitmproxy.options import Options
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls
from OpenSSL import SSL

from pointsman.config.calls import certificate_fault
from pointsman.config.table import TlsSettings
from pointsman.proxy.trust import Trust, as_of

OPTIONS = frozenset(
    {
        "ssl_insecure",
        "ssl_verify_upstream_trusted_ca",
        "ssl_verify_upstream_trusted_confdir",
        "client_certs",
    }
)


def trust_of(options: Options) -> Trust:
    """Return what mitmproxy's options (`OPTIONS`) say of servers."""
    return Trust(
        verify=not options.ssl_insecure,
        ca_file=options.ssl_verify_upstream_trusted_ca,
        ca_folder=options.ssl_verify_upstream_trusted_confdir,
        client_certs=options.client_certs,
    )


class ProviderTLSLayer(tls.ServerTLSLayer):
    """The TLS of one connection, by the provider's settings; where they leave it open, by options.

    mitmproxy builds the connection (SNI, name check, versions); only whom to trust is replaced.
    """

    def __init__(self, context: Context, settings: TlsSettings) -> None:
        super().__init__(context)
        self._settings = settings

    def start_handshake(self) -> layer.CommandGenerator[None]:
        """Set the connection up and begin; without all that it needs it fails."""
        settings, trusting = self._settings, None
        try:
            if settings.ca_file is not None:
                trust = trust_of(self.context.options)
                trusting = _context(settings.ca_file, trust.client_certificate(self.conn.sni or ""))
        except OSError as error:
            yield from self._fail(f"Certificate verify failed: {error}")
            return
        yield from self.start_tls()
        if self.tls is None:
            yield from self._fail("TLS could not be set up")
            return
        if trusting is not None:
            self.tls.set_context(trusting)
            self.tls.set_verify(SSL.VERIFY_PEER)
        elif not settings.verify:
            self.tls.set_verify(SSL.VERIFY_NONE)
        yield from self.receive_handshake_data(b"")

    def _fail(self, error: str) -> layer.CommandGenerator[None]:
        yield from self.on_handshake_error(error)
        yield from self._handshake_finished(error)


def _context(ca_file: str, certificate: str | None) -> SSL.Context:
    """Return a context that trusts the CA file alone, and shows a certificate of ours if given.

    Raises:
        OSError: a file is gone, or nothing in it can be used.
    """
    return _context_as_of(ca_file, certificate, as_of(ca_file, certificate))


@lru_cache(maxsize=64)
def _context_as_of(ca_file: str, certificate: str | None, _as_of: object) -> SSL.Context:
    if fault := certificate_fault(ca_file):
        raise OSError(fault)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(ca_file)
    if certificate is not None:
        try:
            context.use_privatekey_file(certificate)
            context.use_certificate_chain_file(certificate)
        except SSL.Error:
            raise OSError(f"{certificate} has no key and certificate that can be used") from None
    return context
