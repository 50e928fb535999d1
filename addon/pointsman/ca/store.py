"""mitmproxy's directory for its authority (`confdir`): filled once, and the same ever after.

`mitmproxy-ca.pem`, key and chain, is the truth and is written first; the other files are derived
from it and mended when they differ. Each is written beside its place and renamed, under a lock: of
several processes one makes the authority, and a process that dies leaves no half of one.
"""

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import NoEncryption, pkcs12

from pointsman.ca.authority import DEFAULT_DAYS, Authority, AuthorityError, check, generate, parse
from pointsman.full_disks import mend

logger = logging.getLogger(__name__)

AUTHORITY = "mitmproxy-ca.pem"
CERTIFICATE = "mitmproxy-ca-cert.pem"
# The page that mitmproxy shows at http://mitm.it hands these out.
_COPIES = ("mitmproxy-ca-cert.cer",)
_PKCS12 = "mitmproxy-ca-cert.p12"
_DH_PARAMETERS = "mitmproxy-dhparam.pem"
_LOCK = ".pointsman-ca.lock"
_UNFINISHED = ".pointsman-ca-unfinished-"
_LARGEST = 1024 * 1024

# ffdhe3072 (RFC 7919). mitmproxy writes a group of its own where there is none, but not at once:
# of several workers that start together, one may read half of it.
_DH_GROUP = b"""\
-----BEGIN DH PARAMETERS-----
MIIBiAKCAYEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEfz9zeNVs7ZRkDW7w09N75nAI4YbRvydbmyQd62R0mkff3
7lmMsPrBhtkcrv4TCYUTknC0EwyTvEN5RPT9RFLi103TZPLiHnH1S/9croKrnJ32
nuhtK8UiNjoNq8Uhl5sN6todv5pC1cRITgq80Gv6U93vPBsg7j/VnXwl5B0rZsYu
N///////////AgEC
-----END DH PARAMETERS-----
"""


def ensure(
    confdir: Path,
    secret: Path | None = None,
    *,
    name: str | None = None,
    days: int = DEFAULT_DAYS,
) -> Path:
    """Fill a confdir with an authority, if it has none; return the certificate that clients trust.

    Args:
        confdir: mitmproxy's directory; made if it is missing.
        secret: a directory with `tls.crt` and `tls.key` (and `ca.crt`, the root above them). What
            it has takes the place of what is in the confdir. Without it, an authority is made
            once, and what is there stays.
        name: the common name of one that is made.
        days: how long that is valid.

    Raises:
        AuthorityError: says what is wrong, where, and how to mend it.
    """
    given = read_secret(secret) if secret is not None else None
    known = given or _kept(confdir)
    if known is not None and not _missing(confdir, known):
        _restrict(confdir / AUTHORITY)
        return confdir / CERTIFICATE  # the usual restart; the directory may be read-only
    try:
        confdir.mkdir(parents=True, exist_ok=True)
        with _locked(confdir):
            # Another process may have been first.
            authority = given or _kept(confdir) or _make(confdir, name, days)
            if given is not None:
                _tell_of_change(confdir, given)
            for file, (content, mode) in _missing(confdir, authority).items():
                replace_file(confdir / file, content, mode)
    except OSError as error:
        raise AuthorityError(
            f"{confdir}: can't be written ({error.strerror}) by user {os.geteuid()}; {mend(error)}"
        ) from None
    return confdir / CERTIFICATE


def load(confdir: Path) -> Authority:
    """Return the authority of a confdir.

    Raises:
        AuthorityError: there is none, or it can't be used.
    """
    kept = _kept(confdir)
    if kept is None:
        raise AuthorityError(
            f"{confdir}: there is no {AUTHORITY}; make one: pointsman ca init --dir {confdir}"
        )
    return kept


def read_secret(secret: Path) -> Authority:
    """Return the authority of a mounted Secret of the type kubernetes.io/tls.

    Raises:
        AuthorityError: it can't be used.
    """
    # Kubernetes swaps this link: all files are read from one version of the Secret.
    version = secret / "..data"
    folder = version.resolve() if version.exists() else secret
    found = {name: _read(folder / name) for name in ("tls.key", "tls.crt", "ca.crt")}
    key, chain, root = found.values()
    if key is None or chain is None:
        missing = " and ".join(name for name in ("tls.key", "tls.crt") if found[name] is None)
        raise AuthorityError(
            f"{secret}: there is no {missing}; mount a Secret of the type kubernetes.io/tls there"
            " (pointsman ca init --manifest prints one)"
        )
    return _usable(secret, key, chain, root or b"")


def _kept(confdir: Path) -> Authority | None:
    """Return the authority of a confdir; None: there is none yet."""
    path = confdir / AUTHORITY
    anew = "a new authority is made then, which applications have to trust anew"
    pem = _read(path)
    if pem is None:
        if (confdir / CERTIFICATE).exists():
            raise AuthorityError(
                f"{confdir}: {CERTIFICATE} is there, but {AUTHORITY}, which has the key, is not;"
                f" put it back, or delete {CERTIFICATE}: {anew}"
            )
        return None
    try:
        return _usable(path, pem, pem)
    except AuthorityError as error:
        raise AuthorityError(f"{error}. Or delete it and {CERTIFICATE}: {anew}") from None


def _usable(where: Path, key: bytes, chain: bytes, root: bytes = b"") -> Authority:
    try:
        authority = parse(key, chain, root)
        warnings = check(authority)
    except AuthorityError as error:
        raise AuthorityError(f"{where}: {error}") from None
    for warning in warnings:
        logger.warning("%s: %s", where, warning)
    return authority


def _read(path: Path) -> bytes | None:
    """Return what is in a file; None: there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AuthorityError(
            f"{path}: can't be read ({error.strerror}) by user {os.geteuid()}; mend its owner or"
            " mode (in Kubernetes: fsGroup, defaultMode)"
        ) from None


# --- writing --------------------------------------------------------------------------------------


def _make(confdir: Path, name: str | None, days: int) -> Authority:
    made = generate(name=name, days=days)
    logger.info("made a certificate authority in %s: %s", confdir, made.subject)
    return made


def _tell_of_change(confdir: Path, given: Authority) -> None:
    before = _in_place(confdir / AUTHORITY)
    if before is None:
        logger.info("took the certificate authority of the Secret: %s", given.subject)
    elif before != given:
        what = (
            "took the certificate authority of the Secret: %s (SHA-256 %s) in the place of %s (%s);"
            " applications that trust only the old one refuse connections until they trust it"
        )
        logger.warning(what, given.subject, given.fingerprint, before.subject, before.fingerprint)


def _in_place(path: Path) -> Authority | None:
    """Return the authority that a file holds, whatever state it is in; None: it holds none."""
    pem = _read(path)
    try:
        return parse(pem, pem) if pem else None
    except AuthorityError:
        return None


def _restrict(key: Path) -> None:
    """Take from others what they may do with the key, should someone have let them."""
    if not key.stat().st_mode & 0o077:
        return
    try:
        key.chmod(0o600)
    except OSError as error:
        logger.warning(
            "%s: others may read the CA's key, and it can't be changed (%s)", key, error.strerror
        )
    else:
        logger.warning("%s: others could read the CA's key; its mode is 0600 again", key)


def _missing(confdir: Path, authority: Authority) -> dict[str, tuple[bytes, int]]:
    """Return the files that are not there, or not this authority's: content and mode, in order."""
    files: dict[str, tuple[bytes, int]] = {}
    key, chain = authority.key_pem(), authority.chain_pem()
    if _in_place(confdir / AUTHORITY) != authority:
        files[AUTHORITY] = (key + chain, 0o600)
    for name in (CERTIFICATE, *_COPIES):
        if _read(confdir / name) != chain:
            files[name] = (chain, 0o644)
    if CERTIFICATE in files or not (confdir / _PKCS12).exists():
        files[_PKCS12] = (_pkcs12(authority), 0o644)
    if b"-----END DH PARAMETERS-----" not in (_read(confdir / _DH_PARAMETERS) or b""):
        files[_DH_PARAMETERS] = (_DH_GROUP, 0o644)
    return files


def _pkcs12(authority: Authority) -> bytes:
    return pkcs12.serialize_key_and_certificates(
        name=b"mitmproxy",
        key=None,
        cert=authority.certificate,
        cas=authority.chain[1:],
        encryption_algorithm=NoEncryption(),
    )


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file at once or not at all, with exactly this mode whatever the umask."""
    opened, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
    with os.fdopen(opened, "wb") as file:
        os.fchmod(opened, mode)
        file.write(content)
        file.flush()
        os.fsync(opened)
    Path(name).replace(path)


@contextlib.contextmanager
def _locked(confdir: Path) -> Iterator[None]:
    with (confdir / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for unfinished in confdir.glob(f"{_UNFINISHED}*"):
            unfinished.unlink()  # of a process that died: it may hold a key
        yield
