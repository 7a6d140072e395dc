import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral.internal.v1 import encoder_pb2
from pixtral_core.cache.embedding_key import BadKey, EmbeddingKey, from_proto, to_proto

SHA = hashlib.sha256(b"an image").digest()


def test_the_redis_key_is_the_documented_one() -> None:
    key = EmbeddingKey(SHA, "f00d", "public")
    assert key.redis_key == f"pixtral:emb:{{{SHA.hex()}}}:f00d:public"


@pytest.mark.parametrize(
    "other",
    [
        EmbeddingKey(hashlib.sha256(b"another").digest(), "f00d", "public"),
        EmbeddingKey(SHA, "beef", "public"),
        EmbeddingKey(SHA, "f00d", "tenant-7"),
        EmbeddingKey(SHA, "f00d", "public", low_detail=True),
    ],
)
def test_every_part_tells_keys_apart(other: EmbeddingKey) -> None:
    key = EmbeddingKey(SHA, "f00d", "public")
    assert key.redis_key != other.redis_key
    assert key.digest != other.digest
    assert key.identity != other.identity


def test_a_key_survives_the_wire() -> None:
    key = EmbeddingKey(SHA, "f00d", "tenant-7", low_detail=True)
    wire = to_proto(key).SerializeToString()
    assert from_proto(encoder_pb2.EmbeddingKey.FromString(wire)) == key


@pytest.mark.parametrize(
    ("sha", "fingerprint", "scope"),
    [
        (b"", "f00d", "public"),
        (SHA[:-1], "f00d", "public"),
        (SHA, "", "public"),
        (SHA, "f00d", ""),
        (SHA, "f00d:public", "x"),
        (SHA, "f00d", "a b"),
        (SHA, "f00d", "}{"),
        (SHA, "f00d", "naïve"),
        (SHA, "f00d", "x\r\nDEL y"),
    ],
)
def test_parts_that_could_forge_another_key_are_refused(
    sha: bytes, fingerprint: str, scope: str
) -> None:
    with pytest.raises(BadKey):
        EmbeddingKey(sha, fingerprint, scope)


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_keys_never_share_a_redis_key(one: str, two: str) -> None:
    made = set()
    for fingerprint, scope in ((one, two), (two, one), (one + two, "x")):
        try:
            made.add((EmbeddingKey(SHA, fingerprint, scope), fingerprint, scope))
        except BadKey:
            continue
    assert len({key.redis_key for key, *_ in made}) == len(made)
