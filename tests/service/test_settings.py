from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from kssm.errors import InvalidInputError
from kssm.forecast.native.library import SWITCH
from service.settings import OTHERS, Settings, load_settings

DIGEST = hashlib.sha256(b"key").hexdigest()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    import os

    for name in list(os.environ):
        if name.upper().startswith("KSSM_"):
            monkeypatch.delenv(name)


def refused(**given) -> str:
    with pytest.raises(InvalidInputError) as caught:
        load_settings(**given)
    assert caught.value.code == "invalid_settings"
    return caught.value.message


def test_defaults_are_open_and_local():
    settings = load_settings()
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, {})
    assert settings.max_message_bytes == 1 << 20
    assert (settings.max_horizon, settings.max_in_flight, settings.max_channels) == (1024, 256, 256)
    assert settings.state_key_bytes is None


@pytest.mark.parametrize("given", ["memory", Path("memory")])
def test_memory_is_a_store_that_keeps_nothing(monkeypatch, given):
    assert load_settings(store=given).store is None
    monkeypatch.setenv("KSSM_STORE", "memory")
    assert load_settings().store is None
    monkeypatch.setenv("KSSM_STORE", "./memory")
    assert load_settings().store == Path("memory")


def test_arguments_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("KSSM_PORT", "9000")
    monkeypatch.setenv("KSSM_STORE", "/data")
    monkeypatch.setenv("KSSM_API_KEYS", f'{{"acme": "{DIGEST}"}}')
    monkeypatch.setenv("KSSM_STATE_KEY", "ab" * 32)
    settings = load_settings(port=9001, store=None)
    assert settings.port == 9001
    assert settings.store == Path("/data")
    assert settings.api_keys == {"acme": DIGEST}
    assert settings.state_key_bytes == bytes.fromhex("ab" * 32)
    assert "ab" * 32 not in repr(settings)


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("KSSM_API_KEYS", "")
    assert load_settings().api_keys == {}


def test_an_unknown_variable_is_an_error(monkeypatch):
    monkeypatch.setenv("KSSM_PROT", "9000")
    assert "KSSM_PROT" in refused()


@pytest.mark.parametrize("name", [SWITCH, "KSSM_TUNING_CACHE"])
def test_the_librarys_own_variables_are_known(monkeypatch, name):
    assert name in OTHERS
    monkeypatch.setenv(name, "0")
    assert load_settings().port == 8000


def test_the_page_names_every_setting_and_its_default():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(KSSM_\w+)` \| (?:`([^`]*)`)?", page, re.MULTILINE)
    fields = Settings.model_fields
    assert {name for name, _ in rows} == {f"KSSM_{name.upper()}" for name in fields}
    for name, default in rows:
        if default:
            value = fields[name.removeprefix("KSSM_").lower()].default
            assert default == (str(value) if not isinstance(value, tuple) else "[]")
    assert all(name in page for name in OTHERS)


def test_an_error_says_what_to_write(monkeypatch):
    monkeypatch.setenv("KSSM_ALLOWED_ORIGINS", "http://page")
    assert "JSON" in refused()
    monkeypatch.delenv("KSSM_ALLOWED_ORIGINS")
    assert refused(state_key="short").startswith("state_key: state_key is")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KSSM_PORT", "many"),
        ("KSSM_PORT", "70000"),
        ("KSSM_MAX_CHANNELS", "0"),
        ("KSSM_API_KEYS", "not json"),
        ("KSSM_API_KEYS", '{"acme": "short"}'),
        ("KSSM_API_KEYS", f'{{"": "{DIGEST}"}}'),
        ("KSSM_STATE_KEY", "short"),
        ("KSSM_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_is_an_error(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    refused()


def test_an_unknown_argument_is_an_error():
    assert "prot" in refused(prot=1)


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
