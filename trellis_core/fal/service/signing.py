"""The service's own secrets: signed addresses and tokens, the keys of webhooks, and who a client is (docs/method/fal.md)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Collection
from typing import Any

from ...errors import InputError

OPEN = "open"
"""Owner of everything where no key is needed."""


class Keys:
    """The keys that clients may have; none means that everybody may come in."""

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def needed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._digests)

    def owner(self, header: str) -> str | None:
        """Fingerprint of the key in an Authorization header, None if it is not one of ours. Takes as long for any key."""
        if not self._digests:
            return OPEN
        scheme, _, key = header.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        return digest.hex()[:32] if any(known) and scheme.lower() in ("key", "bearer") else None


class Signer:
    """Makes and checks short strings that only this service can have made."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.sha256(b"signer" + secret).digest()

    def sign(self, *parts: str, seconds: float) -> str:
        """A token for exactly these parts, good for `seconds`: "<expires>.<signature>"."""
        expires = str(int(time.time() + seconds))
        return f"{expires}.{self._signature(expires, parts)}"

    def check(self, token: str, *parts: str) -> bool:
        """Whether `sign` made this token of these parts, and it still holds."""
        expires, _, signature = token.partition(".")
        right = hmac.compare_digest(signature.encode(), self._signature(expires, parts).encode())
        return right and expires.isdecimal() and len(expires) < 16 and int(expires) >= time.time()

    def _signature(self, expires: str, parts: tuple[str, ...]) -> str:
        message = "\n".join((expires, *parts)).encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


class WebhookKey:
    """The Ed25519 key that webhooks are signed with.

    Raises:
        InputError: the package cryptography is not installed.
    """

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError:
            raise InputError("Webhooks are signed with the package cryptography: pip install cryptography") from None
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"webhooks" + secret).digest())

    def jwks(self) -> dict[str, Any]:
        """The public key, as a JSON web key set."""
        x = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).rstrip(b"=").decode()
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "x": x}]}

    def headers(self, request_id: str, user: str, body: bytes) -> dict[str, str]:
        """What a receiver checks the body with."""
        now = str(int(time.time()))
        message = "\n".join((request_id, user, now, hashlib.sha256(body).hexdigest()))
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": user,
            "X-Fal-Webhook-Timestamp": now,
            "X-Fal-Webhook-Signature": self._key.sign(message.encode()).hex(),
        }
