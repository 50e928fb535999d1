"""What is made is what strict clients accept; what is given is judged before it is used."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pointsman.ca.authority import AuthorityError, check, generate, parse
from tests.ca.conftest import Made


def test_what_is_made_passes_the_strict_checks_of_openssl(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(generate().chain_pem())
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(path), str(path)]
    assert subprocess.run(command, capture_output=True, check=True).stdout.endswith(b": OK\n")


def test_what_is_made_has_the_extensions_that_clients_ask_for() -> None:
    certificate = generate().certificate
    found = {extension.oid._name: extension for extension in certificate.extensions}
    assert set(found) == {
        "basicConstraints",
        "keyUsage",
        "subjectKeyIdentifier",
        "authorityKeyIdentifier",
    }
    assert found["basicConstraints"].critical
    assert found["basicConstraints"].value == x509.BasicConstraints(ca=True, path_length=0)
    assert found["keyUsage"].critical
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature


def test_what_is_made_says_what_it_is_and_no_two_have_one_name() -> None:
    one, other = generate(), generate()
    assert one.subject.startswith("CN=Pointsman LLM proxy CA ")
    assert one.subject != other.subject
    [named] = generate(name="Shop").certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert named.value == "Shop"


def test_what_is_made_is_valid_for_the_days_and_for_clocks_that_are_behind() -> None:
    authority = generate(days=40)
    assert check(authority) == []
    assert check(authority, datetime.now(UTC) - timedelta(days=1)) == []
    [warning] = check(authority, datetime.now(UTC) + timedelta(days=11))
    assert "expires at" in warning
    with pytest.raises(AuthorityError, match="has expired"):
        check(authority, datetime.now(UTC) + timedelta(days=41))
    with pytest.raises(AuthorityError, match=r"not valid before .* is the clock right"):
        check(authority, datetime.now(UTC) - timedelta(days=3))


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())],
    ids=["rsa", "ec"],
)
def test_keys_are_read_in_every_usual_form(key: object, form: PrivateFormat) -> None:
    made = Made(key=key)
    authority = parse(made.key_pem(form), made.pem)
    assert check(authority) == []
    assert parse(authority.key_pem(), authority.chain_pem()) == authority


def test_the_parameters_that_openssl_puts_before_an_ec_key_are_skipped() -> None:
    made = Made()
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    key = parameters + made.key_pem(PrivateFormat.TraditionalOpenSSL)
    assert parse(key, made.pem) == parse(made.key_pem(), made.pem)


def test_keys_that_cannot_be_used_are_named() -> None:
    made = Made()
    encrypted = made.key_pem(encryption=BestAvailableEncryption(b"secret"))
    with pytest.raises(AuthorityError, match="encrypted; decrypt it: openssl pkey"):
        parse(encrypted, made.pem)
    with pytest.raises(AuthorityError, match="cut off or damaged"):
        parse(made.key_pem()[:80], made.pem)
    with pytest.raises(AuthorityError, match="no private key in it"):
        parse(made.pem, made.pem)
    with pytest.raises(AuthorityError, match="1024 bits, which clients refuse"):
        parse(Made(key=rsa.generate_private_key(65537, 1024)).key_pem(), made.pem)
    with pytest.raises(AuthorityError, match="neither RSA nor ECDSA"):
        parse(Made(key=ed25519.Ed25519PrivateKey.generate()).key_pem(), made.pem)


def test_certificates_that_cannot_be_read_are_named() -> None:
    made = Made()
    with pytest.raises(AuthorityError, match="no certificate in it"):
        parse(made.key_pem(), b"")
    with pytest.raises(AuthorityError, match="the certificate can't be read"):
        parse(made.key_pem(), made.pem[:200])


def test_the_key_must_fit_the_first_certificate() -> None:
    made = Made()
    with pytest.raises(AuthorityError, match=r"does not fit the certificate \(CN=Other\)"):
        check(parse(made.key_pem(), Made("Other").pem + made.pem))


def test_a_server_certificate_is_no_authority() -> None:
    leaf = Made("api.example", ca=False)
    with pytest.raises(AuthorityError, match="isCA: true in cert-manager"):
        check(parse(leaf.key_pem(), leaf.pem))


def test_an_authority_must_be_allowed_to_sign_for_servers() -> None:
    mute = Made(key_cert_sign=False)
    with pytest.raises(AuthorityError, match="lacks keyCertSign"):
        check(parse(mute.key_pem(), mute.pem))
    clients = Made(purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    with pytest.raises(AuthorityError, match="lacks serverAuth"):
        check(parse(clients.key_pem(), clients.pem))
    servers = Made(purposes=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert check(parse(servers.key_pem(), servers.pem)) == []


def test_what_strict_clients_refuse_is_warned_of() -> None:
    lax = Made(critical=False, key_cert_sign=None, identifier=False)
    warnings = check(parse(lax.key_pem(), lax.pem))
    assert [warning.split()[0] for warning in warnings] == [
        "basicConstraints",
        "keyUsage",
        "subjectKeyIdentifier",
    ]


def test_an_intermediate_that_does_not_name_its_issuers_key_is_warned_of() -> None:
    low = Made("Low", issuer=(root := Made("Root")), issuer_named=False)
    [warning] = check(parse(low.key_pem(), low.pem + root.pem))
    assert warning.startswith("authorityKeyIdentifier is missing")


def test_a_chain_is_kept_and_must_be_in_order() -> None:
    root = Made("Root")
    middle = Made("Middle", issuer=root)
    low = Made("Low", issuer=middle)
    authority = parse(low.key_pem(), low.pem + middle.pem + root.pem)
    assert check(authority) == []
    assert [one.subject.rfc4514_string() for one in authority.chain] == [
        "CN=Low",
        "CN=Middle",
        "CN=Root",
    ]
    with pytest.raises(AuthorityError, match="CN=Low is not issued by CN=Root, which follows it"):
        check(parse(low.key_pem(), low.pem + root.pem + middle.pem))


def test_the_root_is_added_to_the_chain_that_lacks_it() -> None:
    root = Made("Root")
    low = Made("Low", issuer=root)
    [warning] = check(parse(low.key_pem(), low.pem))
    assert "its root is not there" in warning
    authority = parse(low.key_pem(), low.pem, Made("Stranger").pem + root.pem)
    assert authority.chain == (low.certificate, root.certificate)
    assert check(authority) == []
    alone = parse(root.key_pem(), root.pem, root.pem)
    assert alone.chain == (root.certificate,)


def test_no_key_is_in_what_is_printed() -> None:
    authority = generate()
    secret = authority.key_pem().split(b"\n")[1].decode()
    assert secret not in repr(authority)
    assert "private" not in repr(authority).lower().replace("privatekey object", "")
