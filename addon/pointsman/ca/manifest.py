"""An authority as a Kubernetes Secret."""

import base64
import re

import yaml

from pointsman.ca.authority import Authority

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


def parse_name(text: str) -> tuple[str, str]:
    """Return name and namespace from `name/namespace`.

    Raises:
        ValueError: it is something else.
    """
    name, slash, namespace = text.partition("/")
    if not slash or not all(_NAME.fullmatch(part) for part in (name, namespace)):
        raise ValueError(
            f"{text!r} is not NAME/NAMESPACE; write lower case letters, digits and -, such as"
            " pointsman-ca/shop"
        )
    return name, namespace


def secret_manifest(authority: Authority, name: str, namespace: str) -> str:
    """Return a Secret of the type kubernetes.io/tls, with the private key in it.

    It is immutable: applied a second time, a new authority must not take the place of the one that
    applications trust. To replace it, delete it first.
    """
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/part-of": "pointsman"},
                "annotations": {"pointsman/certificate-sha256": authority.fingerprint},
            },
            "type": "kubernetes.io/tls",
            "immutable": True,
            "data": {
                "tls.crt": base64.b64encode(authority.chain_pem()).decode(),
                "tls.key": base64.b64encode(authority.key_pem()).decode(),
            },
        },
        sort_keys=False,
    )
