"""The certificate: made once, private, and the same fingerprint that TLS shows."""

import hashlib
import ssl
import stat

import pytest

from kestrel.errors import EnvironmentProblem
from kestrel.server.certificate import ensure_certificate, fingerprint_of, server_context


def test_it_is_made_once_and_private(tmp_path):
    path = ensure_certificate(tmp_path, "kestrel.localhost")
    first = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ensure_certificate(tmp_path, "kestrel.localhost") == path
    assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_fingerprint_is_that_of_the_certificate_tls_shows(tmp_path):
    path = ensure_certificate(tmp_path, "kestrel.localhost")
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    ins, outs = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    ends = (
        client.wrap_bio(ins[0], outs[0]),
        server_context(path).wrap_bio(ins[1], outs[1], server_side=True),
    )
    for _ in range(4):
        for mine, other, end in ((0, 1, ends[0]), (1, 0, ends[1])):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            ins[other].write(outs[mine].read())
    shown = ends[0].getpeercert(binary_form=True)
    assert hashlib.sha256(shown).hexdigest() == fingerprint_of(path)


def test_long_and_foreign_domains_have_certificates_too(tmp_path):
    for number, domain in enumerate(["a" * 60 + "." + "b" * 60 + ".example", "b\u00fccher.example"]):
        directory = tmp_path / str(number)
        directory.mkdir()
        assert len(fingerprint_of(ensure_certificate(directory, domain))) == 64


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(EnvironmentProblem, match="nowhere"):
        ensure_certificate(tmp_path / "nowhere", "x")
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        fingerprint_of(tmp_path / "missing.pem")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(EnvironmentProblem, match="no certificate"):
        fingerprint_of(text)
    with pytest.raises(EnvironmentProblem, match="cannot be used"):
        server_context(text)
