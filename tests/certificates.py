"""Certificates for servers on loopback, made when a test asks: of an authority that nobody else knows."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Signs certificates; `trusting()` is a client that believes it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def trusting(self) -> ssl.SSLContext:
        """Return a client's context that trusts this authority alone."""
        return ssl.create_default_context(cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode())

    def serving(self, folder: Path, *, address: str = "127.0.0.1", days: int = 1) -> ssl.SSLContext:
        """Return a server's context with a certificate for an address that is valid for so many days from now."""
        until = NOW + days * DAY
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = _build(address, key, self.certificate.subject, until).add_extension(names, critical=False)
        path = folder / f"{address}-{days}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def make_authority() -> Authority:
    """Return an authority of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    certificate = _build("tests", key, name, NOW + DAY).add_extension(x509.BasicConstraints(True, None), critical=True)
    return Authority(certificate.sign(key, hashes.SHA256()), key)


def _build(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, until: datetime.datetime
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    return builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - 2 * DAY).not_valid_after(until)
