"""Certificates for servers behind TLS on loopback."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Certificates(NamedTuple):
    """Files: an authority, and two servers with their keys."""

    authority: Path
    here: Path
    """For 127.0.0.1."""
    elsewhere: Path
    """For another host."""


def create_certificates(folder: Path) -> Certificates:
    """New ones, in *folder*."""
    key, name = ec.generate_private_key(ec.SECP256R1()), _name("Tests")
    public = key.public_key()
    authority = (
        _builder(name, public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.KeyUsage(*[False] * 5, True, True, False, False), critical=True)
    )
    (folder / "authority").write_bytes(authority.sign(key, hashes.SHA256()).public_bytes(PEM))

    def server(file: str, host: x509.GeneralName) -> Path:
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(file), own.public_key())
            .add_extension(x509.SubjectAlternativeName([host]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = own.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / file).write_bytes(certificate.public_bytes(PEM) + private)
        return folder / file

    return Certificates(
        folder / "authority",
        server("here", x509.IPAddress(ip_address("127.0.0.1"))),
        server("elsewhere", x509.DNSName("elsewhere.example")),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    """A certificate for *key*, of the tests' authority."""
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=_name("Tests"),
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(days=1),
        not_valid_after=now + timedelta(days=1),
    )
