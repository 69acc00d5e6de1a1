"""An authority of a test's own, and certificates that it gives."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


_SIGNS = ("-addext", "keyUsage=keyCertSign")
_KIND = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Pair(NamedTuple):
    """Files in PEM."""

    certificate: str
    key: str


def make_authority(folder: Path, name: str) -> Pair:
    """One that signs others."""
    made = _files(folder, name)
    _openssl("req", "-x509", *_new(made, name), "-days", "2", *_SIGNS, "-out", made.certificate)
    return made


def make_certificate(folder: Path, name: str, authority: Pair) -> Pair:
    """One of 127.0.0.1 and localhost, for either end of a line, signed by the authority."""
    made = _files(folder, name)
    request = folder / f"{name}.request"
    extensions = folder / f"{name}.extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl("req", *_new(made, name), "-out", str(request))
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial",
        "-days", "2", "-extfile", str(extensions), "-out", made.certificate,
    )  # fmt: skip
    return made


def _files(folder: Path, name: str) -> Pair:
    return Pair(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))


def _new(made: Pair, name: str) -> tuple[str, ...]:
    return (
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        f"/CN={name}",
        "-keyout",
        made.key,
    )


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
