"""The search that says that no key is left anywhere does find one."""

import base64
import gzip

import pytest

from infra.local.seaweedfs import Identity
from tests.flows.key_search import holds

USER = Identity.create("planted", [])
OTHER = Identity.create("other", [])


@pytest.mark.parametrize("key", [USER.secret_key, USER.access_key], ids=["secret", "access"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("offset", [None, *range(8)])
def test_a_planted_key_is_found(key: str, compressed: bool, offset: int | None) -> None:
    """Plain without an offset, else in base64 with so many bytes before it."""
    data = f"a{key}b".encode()
    if offset is not None:
        data = base64.b64encode(b"\xff" * offset + key.encode() + b"\xffend")
    data = b"before " + data + b" behind"
    assert holds(gzip.compress(data) if compressed else data, key)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_another_key_is_not_found(compressed: bool) -> None:
    data = b"".join(base64.b64encode(b"x" * skip + OTHER.secret_key.encode()) for skip in range(3))
    assert not holds(gzip.compress(data) if compressed else data, USER.secret_key)
