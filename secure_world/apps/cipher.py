# SPDX-License-Identifier: BSD-2-Clause
"""Cryptographic primitives of the built-in TAs, from the optional ``cryptography`` package.

The package is imported on first use only, so that ``import secure_world`` works without it. Nothing
here draws random numbers: keys and nonces come from the caller, ECDSA signs deterministically
(RFC 6979), so a seed reproduces every byte. Simulated keys are not secret.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_SIZE: Final = 12
"""Octets of an AES-GCM nonce (NIST SP 800-38D, the recommended 96 bits)."""
TAG_SIZE: Final = 16
"""Octets of an AES-GCM tag."""
COORDINATE_SIZE: Final = 32
"""Octets of a P-256 scalar or coordinate (FIPS 186-5)."""
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order n of the P-256 base point (SP 800-186, 3.2.1.3)."""
SCALAR_SEED_SIZE: Final = 40
"""Octets drawn for a private scalar: 64 bits more than n, so that the bias is below 2^-64
(FIPS 186-5, A.2.1)."""


class MissingExtra(ImportError):
    """An optional package is not installed; the message names the extra to install."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"the package {package!r} is needed: pip install 'optee-mediator[{extra}]'",
            name=package,
        )
        self.extra = extra


def require_crypto() -> None:
    """Raise :class:`MissingExtra`, naming the extra ``crypto``, unless its package is there."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtra("crypto", "cryptography") from error


def aes_gcm(key: bytes) -> AESGCM:
    """AES-GCM under a key of 16, 24 or 32 octets; raises ValueError for other lengths."""
    require_crypto()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def gcm_seal(cipher: AESGCM, nonce: bytes, plain: bytes, aad: bytes) -> bytes:
    """Ciphertext followed by the 16-octet tag."""
    return cipher.encrypt(nonce, plain, aad)


def gcm_open(cipher: AESGCM, nonce: bytes, sealed: bytes, aad: bytes) -> bytes | None:
    """The plaintext, or ``None`` if the tag does not fit."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, sealed, aad)
    except InvalidTag:
        return None


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA-256 (FIPS 198-1), 32 octets."""
    return hmac.digest(key, data, "sha256")


def p256_scalar(seed: bytes) -> bytes:
    """A private scalar, 32 octets big endian, from :data:`SCALAR_SEED_SIZE` random octets."""
    if len(seed) != SCALAR_SEED_SIZE:
        raise ValueError(f"{SCALAR_SEED_SIZE} octets are needed, not {len(seed)}")
    scalar = int.from_bytes(seed, "big") % (P256_ORDER - 1) + 1
    return scalar.to_bytes(COORDINATE_SIZE, "big")


def p256_valid_scalar(private: bytes) -> bool:
    """True for 32 octets with a value in 1..n-1."""
    return len(private) == COORDINATE_SIZE and 0 < int.from_bytes(private, "big") < P256_ORDER


def p256_public(private: bytes) -> bytes:
    """The public point of a private scalar, uncompressed: 0x04, X, Y (65 octets, SEC 1)."""
    require_crypto()
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def p256_valid_point(public: bytes) -> bool:
    """True if ``public`` is an uncompressed point of the curve (65 octets)."""
    require_crypto()
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(public) != 1 + 2 * COORDINATE_SIZE:
        return False
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    except ValueError:
        return False
    return True


def p256_sign(private: bytes, digest: bytes) -> bytes:
    """Deterministic ECDSA over a SHA-256 digest (32 octets): r and s, 32 octets each, big endian.

    The format is that of TEE_AsymmetricSignDigest (GlobalPlatform Internal Core API). Raises
    NotImplementedError if the native library cannot sign deterministically (OpenSSL before 3.2).
    """
    require_crypto()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import (
        Prehashed,
        decode_dss_signature,
    )

    key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
    try:
        algorithm = ec.ECDSA(Prehashed(hashes.SHA256()), deterministic_signing=True)
    except UnsupportedAlgorithm as error:
        raise NotImplementedError("deterministic ECDSA") from error
    r, s = decode_dss_signature(key.sign(digest, algorithm))
    return r.to_bytes(COORDINATE_SIZE, "big") + s.to_bytes(COORDINATE_SIZE, "big")


def p256_verify(public: bytes, digest: bytes, signature: bytes) -> bool:
    """True if ``signature`` (r, s; 64 octets) over ``digest`` was made for the point ``public``.

    Raises ValueError if ``public`` is no point of the curve.
    """
    require_crypto()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import (
        Prehashed,
        encode_dss_signature,
    )

    if len(signature) != 2 * COORDINATE_SIZE:
        return False
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    encoded = encode_dss_signature(
        int.from_bytes(signature[:COORDINATE_SIZE], "big"),
        int.from_bytes(signature[COORDINATE_SIZE:], "big"),
    )
    try:
        point.verify(encoded, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True
