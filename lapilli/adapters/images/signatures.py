"""Signed images: whether a file is what the holder of a certificate has signed.

An image names hash, kind of key and certificate in the properties that Glance's documentation gives. The
certificate is a file that the operator has put into a directory: only whom the operator knows is believed.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from datetime import UTC, datetime
from typing import Any

from lapilli.domain.model import Image
from lapilli.errors import ImageUnacceptable

_UUID = re.compile(r"[0-9a-fA-F-]{32,36}")
_HASHES = {"SHA-224": "SHA224", "SHA-256": "SHA256", "SHA-384": "SHA384", "SHA-512": "SHA512"}
_PIECE = 1 << 20


def verify(image: Image, path: str, directory: str | None) -> None:
    """Raises `ImageUnacceptable` for a signed image whose signature does not hold; an unsigned one passes."""
    signature = image.properties.get("img_signature")
    if signature is None:
        return
    try:
        _verify(image, base64.b64decode(signature, validate=True), path, directory)
    except (binascii.Error, ValueError, TypeError) as problem:
        raise _refused(image, "its signature or its certificate cannot be read") from problem


def _verify(image: Image, signature: bytes, path: str, directory: str | None) -> None:
    from cryptography import exceptions  # noqa: PLC0415 - heavy, and signed images are rare
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    name = image.properties.get("img_signature_hash_method", "")
    if name not in _HASHES:
        raise _refused(image, f"hash method {name!r} is not one of {', '.join(_HASHES)}")
    algorithm = getattr(hashes, _HASHES[name])()
    key = _key(image, directory)
    digest = hashes.Hash(algorithm)
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(_PIECE), b""):
            digest.update(piece)
    try:
        _check(image, key, signature, digest.finalize(), algorithm)
    except exceptions.InvalidSignature:
        raise _refused(image, "the signature is not that of its content") from None


def _key(image: Image, directory: str | None) -> Any:
    """The public key of the certificate that the image names."""
    from cryptography import x509  # noqa: PLC0415

    identifier = image.properties.get("img_signature_certificate_uuid", "")
    if not _UUID.fullmatch(identifier):
        raise _refused(image, "it names no certificate")
    try:
        if directory is None:
            raise FileNotFoundError
        with open(os.path.join(directory, f"{identifier}.pem"), "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read())
    except OSError:
        raise _refused(image, f"certificate {identifier} is not here") from None
    if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
        raise _refused(image, f"certificate {identifier} is not valid today")
    return certificate.public_key()


def _check(image: Image, key: Any, signature: bytes, digest: bytes, algorithm: Any) -> None:
    from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa, utils  # noqa: PLC0415

    kind, prehashed = image.properties.get("img_signature_key_type", ""), utils.Prehashed(algorithm)
    if kind == "RSA-PSS" and isinstance(key, rsa.RSAPublicKey):
        pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
        key.verify(signature, digest, pss, prehashed)
    elif kind == "DSA" and isinstance(key, dsa.DSAPublicKey):
        key.verify(signature, digest, prehashed)
    elif kind == f"ECC_{getattr(getattr(key, 'curve', None), 'name', '').upper()}":
        key.verify(signature, digest, ec.ECDSA(prehashed))
    else:
        raise _refused(image, f"its certificate holds no key of the kind {kind!r}")


def _refused(image: Image, why: str) -> ImageUnacceptable:
    return ImageUnacceptable(f"Image {image.id} is signed, but {why}.", detail="011")
