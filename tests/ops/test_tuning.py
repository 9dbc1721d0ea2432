"""The tuning files: nearest class, precedence, round trip, and what is not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.ops import tuning
from kssm.ops.tuning import ShapeClass, load, save, tuned, user_file

GPU = torch.device("cuda", 0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(shipped, user's) files, neither there, on a machine whose GPU is called "Test"."""
    shipped, user = tmp_path / "shipped.json", tmp_path / "cache" / "user.json"
    monkeypatch.setattr(tuning, "SHIPPED", shipped)
    monkeypatch.setenv("KSSM_TUNING_CACHE", str(user))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test")
    return shipped, user


def test_the_nearest_class_of_the_kind_is_chosen(files):
    shape = ShapeClass.of("16bit", 64, 4096, 1024)
    assert shape == ShapeClass("16bit", 16, 12)
    near, far = ShapeClass("16bit", 15, 12), ShapeClass("16bit", 10, 16)
    other = ShapeClass("32bit", 16, 12)
    save(files[0], "Test", {"scan": {near: {"n": 1}, far: {"n": 2}, other: {"n": 3}}})
    assert tuned("scan", GPU, shape) == {"n": 1}
    assert tuned("scan", GPU, ShapeClass("16bit", 9, 16)) == {"n": 2}
    assert tuned("scan", GPU, other) == {"n": 3}
    assert tuned("scan", GPU, ShapeClass("64bit", 1, 1)) is None
    assert tuned("step", GPU, shape) is None
    assert tuned("scan", torch.device("cpu"), shape) is None


def test_the_users_file_comes_first_and_its_changes_are_seen(files):
    shape = ShapeClass("16bit", 3, 4)
    save(files[0], "Test", {"scan": {shape: {"n": 1}}})
    assert tuned("scan", GPU, shape) == {"n": 1}
    save(files[1], "Test", {"scan": {shape: {"n": 2, "m": None}}})
    assert tuned("scan", GPU, shape) == {"n": 2, "m": None}


def test_saving_keeps_what_else_is_in_the_file(files):
    first, second = ShapeClass("16bit", 3, 4), ShapeClass("16bit", 4, 4)
    save(files[1], "Other", {"scan": {first: {"n": 1}}})
    save(files[1], "Test", {"scan": {first: {"n": 2}}})
    save(files[1], "Test", {"scan": {second: {"n": 3}}, "step": {first: {"n": 4}}})
    assert load(files[1]) == {
        "Other": {"scan": {"16bit/3/4": {"n": 1}}},
        "Test": {
            "scan": {"16bit/3/4": {"n": 2}, "16bit/4/4": {"n": 3}},
            "step": {"16bit/3/4": {"n": 4}},
        },
    }
    assert [entry.name for entry in files[1].parent.iterdir()] == ["user.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"b": {"c": {"d": 1.5}}}}'])
def test_other_content_is_refused(files, text):
    files[0].write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        load(files[0])
    assert caught.value.code == "invalid_tuning_cache"


def test_an_unreadable_class_is_refused(files):
    files[0].write_text(json.dumps({"Test": {"scan": {"16bit/x/2": {"n": 1}}}}))
    with pytest.raises(InvalidInputError, match="shape class"):
        tuned("scan", GPU, ShapeClass("16bit", 1, 1))


def test_where_the_users_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv("KSSM_TUNING_CACHE", "")
    assert user_file() is None
    monkeypatch.delenv("KSSM_TUNING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_file() == tmp_path / "kssm" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_file() == tmp_path / ".cache" / "kssm" / "tuning.json"


def test_the_shipped_file_can_be_read():
    for kernels in load(tuning.SHIPPED).values():
        for entries in kernels.values():
            assert all(str(ShapeClass.parse(text)) == text for text in entries)
