from __future__ import annotations

import logging
import signal

import pytest

from kssm.errors import KSSMError
from service.app import create_app
from service.server import RedactKeys, make_server, run
from service.settings import Settings
from tests.service.fakes import FakeEngine


def test_the_log_shows_no_keys():
    text = '%s - "WebSocket %s" [accepted]'
    args = (("1.2.3.4", 5), "/v1/stream?api_key=secret&x=1")
    record = logging.LogRecord("uvicorn.error", logging.INFO, "", 0, text, args, None)
    assert RedactKeys().filter(record)
    assert "secret" not in record.getMessage()
    assert "/v1/stream?api_key=***&x=1" in record.getMessage()


def test_the_servers_own_log_is_redacted(capfd):
    settings = Settings()
    make_server(create_app(settings, FakeEngine()), settings)
    log = logging.getLogger("uvicorn.error")
    log.info('%s - "WebSocket %s" [accepted]', "peer", "/v1/stream?api_key=secret")
    assert "api_key=***" in capfd.readouterr().err
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()


def test_a_signal_ends_the_server_with_status_zero():
    settings = Settings()
    server = make_server(create_app(settings, FakeEngine()), settings)
    with server.capture_signals():
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
        assert not server.force_exit
        signal.raise_signal(signal.SIGINT)
        assert server.force_exit


def test_a_peer_that_is_not_read_from_is_not_taken_for_dead():
    settings = Settings()
    config = make_server(create_app(settings, FakeEngine()), settings).config
    assert config.ws_ping_interval
    assert config.ws_ping_timeout is None


def test_an_unusable_store_is_told_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KSSMError) as caught:
        run(Settings(store=tmp_path / "file" / "store", model="no-such-model"))
    assert caught.value.code == "store_unavailable"


def test_the_limits_reach_the_server():
    settings = Settings(max_message_bytes=5000, host="::1", port=1)
    config = make_server(create_app(settings, FakeEngine()), settings).config
    assert (config.host, config.port, config.ws_max_size) == ("::1", 1, 5000)
    assert config.ws_per_message_deflate is False
