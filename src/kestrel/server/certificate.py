"""A self-signed certificate, made once and kept; whoever joins trusts it by its fingerprint.

It must never leave the key readable for others, and never replaces a file that is there. Called by
whoever hosts the embedded server. `cryptography` is imported only when a certificate is made.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from pathlib import Path

from kestrel.errors import EnvironmentProblem

FILE_NAME = "server.pem"
VALID_DAYS = 3650
"""Workers pin the fingerprint, so an early end would only lock pools out."""


def ensure_certificate(directory: Path, domain: str) -> Path:
    """Path of the PEM file (key and certificate, mode 0600) in `directory`; made if it is missing.

    Raises `EnvironmentProblem`.
    """
    path = directory / FILE_NAME
    try:
        if not path.exists():
            _write(path, _make(domain))
        elif os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as problem:
        raise EnvironmentProblem(
            f"the certificate {path} cannot be kept: {problem.strerror or problem}",
            hint="check that the directory exists and that you may write there",
        ) from problem
    return path


def fingerprint_of(path: Path) -> str:
    """SHA-256 of the first certificate in the PEM file (in DER form), in hex. Raises `EnvironmentProblem`."""
    try:
        text = path.read_text(encoding="ascii")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin)
        der = ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n")
    except OSError as problem:
        raise EnvironmentProblem(
            f"the certificate {path} cannot be read: {problem.strerror or problem}",
            hint="check the path and who may read it",
        ) from problem
    except ValueError as problem:
        raise EnvironmentProblem(
            f"{path} contains no certificate in PEM form", hint="move it away, and a new one will be made"
        ) from problem
    return hashlib.sha256(der).hexdigest()


def server_context(path: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer with this certificate and key. Raises `EnvironmentProblem`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Sessions are long and many: tickets and compression would only cost memory.
    context.num_tickets = 0
    # XEP-0368 section 5; browsers, which only speak WebSocket, name `http/1.1`.
    context.set_alpn_protocols(["xmpp-client", "http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(path)
    except (OSError, ssl.SSLError) as problem:
        raise EnvironmentProblem(
            f"the certificate {path} cannot be used: {problem.strerror or problem}",
            hint="it must be a PEM file with certificate and unencrypted key that you may read",
        ) from problem
    return context


def _write(path: Path, pem: bytes) -> None:
    """Whole or not at all, and never readable for others."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _make(domain: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters (RFC 5280 appendix A.1); the full domain is in the extension.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain[:64])])
    now = datetime.datetime.now(datetime.UTC)
    ascii_domain = domain if domain.isascii() else domain.encode("idna").decode("ascii")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(ascii_domain)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
