"""The key that names an image embedding."""

import hashlib
from dataclasses import dataclass

from pixtral.internal.v1 import encoder_pb2


class BadKey(ValueError):
    """A key from another process that cannot name an embedding."""


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """Names an embedding by its image, its tenant, and everything that determines its values.

    Only servers make keys, from bytes that they have read themselves.

    Attributes:
        image_sha256: SHA-256 of the image file as received, 32 bytes.
        fingerprint: digest of everything else that determines the embedding, see
            `pixtral_core.model.fingerprint`.
        scope: the tenant that owns the embedding. Equal images of two scopes have two keys, so that
            a warm cache does not reveal one tenant's images to another.
        low_detail: whether the embedding is that of the image in low detail, which is smaller.
    """

    image_sha256: bytes
    fingerprint: str
    scope: str
    low_detail: bool = False

    def __post_init__(self) -> None:
        if len(self.image_sha256) != hashlib.sha256().digest_size:
            raise BadKey("image_sha256 must be 32 bytes")
        for part in (self.fingerprint, self.scope):
            if not part or not part.isascii() or not part.replace("-", "").isalnum():
                raise BadKey("fingerprint and scope must be ASCII letters, digits and hyphens")

    @property
    def redis_key(self) -> str:
        # The braces make the image's hash the cluster slot: all of an image's embeddings are on one
        # shard, and the images spread over all shards.
        detail = ":low" if self.low_detail else ""
        return f"pixtral:emb:{{{self.image_sha256.hex()}}}:{self.fingerprint}:{self.scope}{detail}"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the whole key, 32 bytes; a stored value carries it."""
        return hashlib.sha256(self.redis_key.encode("ascii")).digest()

    @property
    def identity(self) -> str:
        """The digest in hexadecimal: the image's name in the engine's caches."""
        return self.digest.hex()


def to_proto(key: EmbeddingKey) -> encoder_pb2.EmbeddingKey:
    return encoder_pb2.EmbeddingKey(
        image_sha256=key.image_sha256,
        fingerprint=key.fingerprint,
        scope=key.scope,
        low_detail=key.low_detail,
    )


def from_proto(message: encoder_pb2.EmbeddingKey) -> EmbeddingKey:
    """Raises BadKey if a part is missing or malformed."""
    return EmbeddingKey(
        message.image_sha256, message.fingerprint, message.scope, message.low_detail
    )
