from __future__ import annotations

import hashlib

import pytest

from kssm.errors import UnauthorizedError
from service.auth import Authenticator, bearer, origin_allowed


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_without_keys_everybody_is_the_default_tenant():
    assert Authenticator({}).tenant(None) == "default"
    assert Authenticator({}).tenant("anything") == "default"


def test_a_key_names_its_tenant():
    auth = Authenticator({"a": digest("one"), "b": digest("two")})
    assert auth.tenant("one") == "a"
    assert auth.tenant("two") == "b"


@pytest.mark.parametrize("key", [None, "", "three", digest("one"), "one ", "é", "\ud800"])
def test_other_keys_are_refused(key):
    auth = Authenticator({"a": digest("one")})
    with pytest.raises(UnauthorizedError) as caught:
        auth.tenant(key)
    assert caught.value.code == "unauthorized"


def test_no_key_is_not_the_empty_key():
    with pytest.raises(UnauthorizedError):
        Authenticator({"a": digest("")}).tenant(None)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer one", "one"),
        ("bearer  one ", "one"),
        ("Basic one", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer(header, key):
    assert bearer(header) == key


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "answer"),
    [
        (None, "a:1", (), True),
        ("http://a:1", "a:1", (), True),
        ("http://b:1", "a:1", (), False),
        ("http://b:1", "a:1", ("http://b:1",), True),
        ("http://b:1", "a:1", ("*",), True),
        ("null", "a:1", (), False),
        ("http://[", "a:1", (), False),
        ("http://a:1", None, (), False),
    ],
)
def test_origins(origin, host, allowed, answer):
    assert origin_allowed(origin, host, allowed) is answer
