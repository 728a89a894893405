"""An issuer of tokens such as a kube-apiserver is: its keys, its tokens, and the claims that it would put into them."""

from __future__ import annotations

import json
import time
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, KeyParameters, RSAKey

ISSUER = "https://kubernetes.default.svc"
SUBJECT = "system:serviceaccount:kube-system:rhizome-shoot-client"


def claims(
    audience: str, *, node: str = "node-1", now: float | None = None, lifetime_s: float = 3600.0
) -> dict[str, Any]:
    """What a projected ServiceAccount token of a pod on `node` says. `now` None: now."""
    now = time.time() if now is None else now
    return {
        "iss": ISSUER,
        "aud": [audience],
        "sub": SUBJECT,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now + lifetime_s),
        "jti": "5ee52b52-0000-4000-8000-000000000000",
        "kubernetes.io": {
            "namespace": "kube-system",
            "node": {"name": node, "uid": "n"},
            "pod": {"name": "rhizome-shoot-client-x7k2p", "uid": "p"},
            "serviceaccount": {"name": "rhizome-shoot-client", "uid": "s"},
        },
    }


class Issuer:
    """Signs with one key, an RSA one or (quicker to make) an elliptic one."""

    def __init__(self, kid: str = "key-1", *, rsa: bool = False) -> None:
        named: KeyParameters = {"kid": kid, "use": "sig"}
        self.algorithm = "RS256" if rsa else "ES256"
        self.key: RSAKey | ECKey = RSAKey.generate_key(2048, named) if rsa else ECKey.generate_key("P-256", named)

    @property
    def kid(self) -> str:
        return str(self.key.kid)

    def jwks(self, *others: Issuer) -> bytes:
        """The public keys, as an issuer publishes them."""
        return json.dumps({"keys": [issuer.key.as_dict(private=False) for issuer in (self, *others)]}).encode()

    def sign(self, body: dict[str, Any], **header: Any) -> str:
        """A token. `header` replaces or adds header fields, None takes one out."""
        full = {"alg": self.algorithm, "kid": self.kid} | header
        full = {name: value for name, value in full.items() if value is not None}
        return jwt.encode(full, body, self.key, algorithms=[self.algorithm])
