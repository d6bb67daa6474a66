"""What an image's content is compared with: the hash that its record has, or the MD5 sum of older ones."""

from __future__ import annotations

import hashlib

from lapilli.domain.model import Image

ALGORITHM, VALUE = "os_hash_algo", "os_hash_value"  # Glance's properties


def expected(image: Image) -> tuple[str, str | None]:
    """(algorithm, digest in hexadecimal) of the content; the digest is None where the record has none."""
    algorithm, digest = image.properties.get(ALGORITHM, ""), image.properties.get(VALUE)
    if digest and algorithm in hashlib.algorithms_available:
        return algorithm, digest
    return "md5", image.checksum
