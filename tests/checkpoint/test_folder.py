"""Tensors in one file or in shards: what is written is read, what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kssm.checkpoint import Naming, TensorFolder, convert_, load_weights, write_tensors
from kssm.checkpoint.folder import plan_shards
from kssm.checkpoint.names import fused, single
from kssm.errors import CheckpointError, InvalidInputError

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(0)
    sizes = {"a": (3, 4), "b": (5,), "c": (100,), "d": (2, 2, 2), "e": ()}
    return {name: torch.randn(shape, generator=make) for name, shape in sizes.items()}


def read(folder: Path) -> dict[str, Tensor]:
    with TensorFolder(folder) as file:
        return {name: file.get(name) for name in file}


@pytest.mark.parametrize("limit", [None, 10**9, 100, 1])
def test_round_trip(tmp_path: Path, limit: int | None) -> None:
    given = tensors()
    write_tensors(tmp_path, given, limit)
    found = read(tmp_path)
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert (tmp_path / INDEX).exists() == (limit in {100, 1})


def test_headers_tell_shapes_and_dtypes(tmp_path: Path) -> None:
    write_tensors(tmp_path, {"x": torch.ones(2, 3).bfloat16(), "y": torch.ones(4).long()}, 1)
    with TensorFolder(tmp_path) as file:
        assert (file.shape("x"), file.dtype("x")) == ((2, 3), torch.bfloat16)
        assert (file.shape("y"), file.dtype("y")) == ((4,), torch.int64)
        assert len(file) == 2
        assert "x" in file


def test_shards_are_cut_where_the_next_tensor_would_not_fit() -> None:
    assert plan_shards({"a": 4, "b": 4, "c": 4, "d": 9, "e": 1}, 8) == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]
    assert plan_shards({"a": 4, "b": 4}, None) == [["a", "b"]]


def test_a_later_save_replaces_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").touch()
    for limit in (1, None, 100):
        given = {name: tensor + (limit or 0) for name, tensor in tensors().items()}
        write_tensors(tmp_path, given, limit)
        found = read(tmp_path)
        assert all(torch.equal(found[name], given[name]) for name in given)
    files = {path.name for path in tmp_path.glob("model*.safetensors")}
    index = json.loads((tmp_path / INDEX).read_text())
    assert files == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in given.values())
    assert (tmp_path / "other.safetensors").exists()


def test_an_index_that_does_not_fit_its_shards(tmp_path: Path) -> None:
    write_tensors(tmp_path, tensors(), 1)
    shard = tmp_path / json.loads((tmp_path / INDEX).read_text())["weight_map"]["b"]
    save_file({"z": torch.ones(1)}, shard)
    with pytest.raises(CheckpointError) as error:
        TensorFolder(tmp_path)
    assert "lacks b" in error.value.message
    assert "unlisted z" in error.value.message


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "../m"}}'],
)
def test_a_malformed_index(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CheckpointError):
        TensorFolder(tmp_path)


def test_a_lost_shard(tmp_path: Path) -> None:
    write_tensors(tmp_path, tensors(), 1)
    (tmp_path / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00002"):
        TensorFolder(tmp_path)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never loaded"):
        TensorFolder(tmp_path)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.rate = nn.Parameter(torch.zeros(4, 2))
        self.register_buffer("scale", torch.ones(2))


FUSED = Naming(
    [
        fused(("q", "k"), "layer.weight", (3, 1)),
        single("bias", "layer.bias"),
        single("rate", "rate", lambda t: t.t(), lambda t: t.t()),
        single("scale", "scale"),
    ],
    aliases={"copy": "bias"},
    ignored=(".inv_freq",),
)


def theirs() -> dict[str, Tensor]:
    return {
        "q": torch.arange(9.0).reshape(3, 3),
        "k": torch.ones(1, 3),
        "bias": torch.arange(4.0),
        "copy": torch.arange(4.0),
        "rate": torch.arange(8.0).reshape(2, 4),
        "scale": torch.ones(2),
        "x.inv_freq": torch.ones(7),
    }


def test_tensors_are_joined_and_turned(tmp_path: Path) -> None:
    write_tensors(tmp_path, theirs(), 40)
    net = Net()
    load_weights(net, tmp_path, FUSED)
    given = theirs()
    assert torch.equal(net.layer.weight, torch.cat([given["q"], given["k"]]))
    assert torch.equal(net.rate, given["rate"].t())


def test_all_problems_at_once_and_nothing_changed(tmp_path: Path) -> None:
    given = theirs()
    del given["k"]
    given["q"] = given["q"][:, :2].contiguous()
    given["rate"][0, 0] = torch.nan
    given["copy"][0] = 9.0
    given["scale"] = torch.ones(2, dtype=torch.int64)
    given["more"] = torch.ones(1)
    write_tensors(tmp_path, given)
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(net, tmp_path, FUSED)
    for part in (
        "missing k",
        "unexpected more",
        "q has shape [3, 2], expected [3, 3]",
        "rate holds non-finite",
        "copy differs from bias",
        "scale has dtype torch.int64",
    ):
        assert part in error.value.message
    assert "inv_freq" not in error.value.message
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_from_every_dtype(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    source = Net()
    with torch.no_grad():
        source.rate.copy_(torch.linspace(0.5, 2, 8).reshape(4, 2))
    write_tensors(tmp_path, {n: t.to(stored) for n, t in source.state_dict().items()})
    net = Net()
    convert_(net, wanted)
    load_weights(net, tmp_path)
    assert net.layer.weight.dtype == net.layer.bias.dtype == wanted
    wide = torch.float64 if wanted == torch.float64 else torch.float32
    assert net.rate.dtype == net.get_buffer("scale").dtype == wide
    assert torch.equal(net.layer.weight, source.layer.weight.to(stored).to(wanted))
    assert torch.equal(net.rate, source.rate.to(stored).to(wide))


def test_values_that_a_dtype_cannot_hold(tmp_path: Path) -> None:
    given = Net().state_dict()
    given["layer.weight"] = torch.full((4, 3), 1e5)
    write_tensors(tmp_path, given)
    net = Net()
    load_weights(net, tmp_path)
    convert_(net, torch.float16)
    with pytest.raises(CheckpointError, match=r"layer.weight holds values beyond the range"):
        load_weights(net, tmp_path)


def test_values_need_not_be_checked(tmp_path: Path) -> None:
    given = Net().state_dict()
    given["rate"] = torch.full((4, 2), torch.nan)
    write_tensors(tmp_path, given)
    net = Net()
    load_weights(net, tmp_path, check_values=False)
    assert net.rate.isnan().all()


def test_integers_are_no_dtype_for_weights() -> None:
    with pytest.raises(InvalidInputError) as error:
        convert_(Net(), torch.int8)
    assert error.value.code == "invalid_dtype"


def test_transformers_finds_the_format_it_asks_for(tmp_path: Path) -> None:
    from safetensors import safe_open

    write_tensors(tmp_path, tensors())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert load_file(tmp_path / "model.safetensors").keys() == tensors().keys()
