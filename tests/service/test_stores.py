from __future__ import annotations

import stat

import pytest

from kssm.errors import KSSMError
from service.stores import MemoryStore, Record, SQLiteStore, open_store

A = Record("t", "a", b"{}", b"\x00\x01")
B = Record("t", "b", b"{}", b"")


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path)
    await made.open()
    yield made
    await made.close()


async def test_what_is_put_is_found(store):
    assert await store.get("t", "a") is None
    await store.put([A, B])
    assert await store.get("t", "a") == A
    assert await store.get("t", "b") == B
    assert await store.count() == 2


async def test_a_later_put_wins(store):
    await store.put([A])
    await store.put([Record("t", "a", b"[1]", b"new")])
    assert await store.get("t", "a") == Record("t", "a", b"[1]", b"new")
    assert await store.count() == 1


async def test_tenants_are_apart(store):
    await store.put([A])
    assert await store.get("other", "a") is None
    assert not await store.delete("other", "a")
    assert await store.get("t", "a") == A


async def test_delete_says_whether_there_was_one(store):
    await store.put([A])
    assert await store.delete("t", "a")
    assert not await store.delete("t", "a")
    assert await store.get("t", "a") is None


async def test_records_unused_since_a_moment(store):
    await store.put([Record("t", "a", b"{}", b"", 10.0), Record("t", "b", b"{}", b"", 20.0)])
    assert list(await store.unused_since(20.0)) == [("t", "a")]
    await store.put([Record("t", "a", b"{}", b"", 30.0)])
    assert list(await store.unused_since(20.0)) == []
    assert (await store.get("t", "a")).used_at == 30.0


async def test_nothing_to_put(store):
    await store.put([])
    assert await store.count() == 0


async def test_the_secret_stays_the_same(store):
    secret = await store.secret()
    assert len(secret) == 32
    assert await store.secret() == secret


async def test_a_file_outlives_its_store(tmp_path):
    first = SQLiteStore(tmp_path / "new" / "file.db")
    await first.open()
    await first.put([A])
    secret = await first.secret()
    await first.close()
    second = SQLiteStore(first.path)
    await second.open()
    assert await second.get("t", "a") == A
    assert await second.secret() == secret
    await second.close()
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600


async def test_a_failed_put_writes_nothing(tmp_path):
    store = SQLiteStore(tmp_path)
    await store.open()
    with pytest.raises(Exception, match="NOT NULL"):
        await store.put([A, Record("t", "b", None, b"")])
    assert await store.count() == 0
    await store.put([B])
    assert await store.count() == 1
    await store.close()


async def test_a_store_has_one_user(tmp_path, monkeypatch):
    first, second = SQLiteStore(tmp_path), SQLiteStore(tmp_path)
    monkeypatch.setattr("service.stores.sqlite.LOCK_PATIENCE_S", 0.01)
    await first.open()
    with pytest.raises(KSSMError) as caught:
        await second.open()
    assert caught.value.code == "store_unavailable"
    await second.close()
    await first.close()


async def test_what_is_not_a_store_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are not the bytes of a database, whatever the path says" * 20)
    store = SQLiteStore(path)
    with pytest.raises(KSSMError) as caught:
        await store.open()
    assert caught.value.code == "store_unavailable"
    await store.close()
    assert path.read_text().startswith("these are not")


def test_the_setting_chooses_the_store(tmp_path):
    assert isinstance(open_store(None), MemoryStore)
    chosen = open_store(tmp_path)
    assert isinstance(chosen, SQLiteStore)
    assert chosen.path == tmp_path / "sessions.sqlite3"
