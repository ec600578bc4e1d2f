"""The streaming safetensors writer, against the library's reader, and the hash of weight files."""

import hashlib
import json
import struct
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tuitrain.engine.weights import TensorRef, hash_weights, read_header, write_safetensors
from tuitrain.errors import CheckpointError, ModelError


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "transposed": torch.randn(5, 7, generator=generator).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0),
        "conv.bias": torch.randn(8, generator=generator, dtype=torch.float64),
        "ids": torch.arange(3),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_librarys_reader_gets_every_tensor_cast(
    dtype: torch.dtype, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors.items(), dtype=dtype, metadata={"step": "7"})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        wanted = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert loaded[name].dtype == wanted.dtype
        assert torch.equal(loaded[name], wanted)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}


def test_the_bytes_are_those_the_library_writes(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, theirs, metadata={"format": "pt"})
    with safe_open(theirs, framework="pt") as file:
        order = file.offset_keys()
    as_stored = {name: tensors[name] for name in order}
    del as_stored["conv.bias"], as_stored["ids"]  # kept in dtypes that the cast below would change
    write_safetensors(ours, as_stored.items(), dtype=torch.float32)
    save_file({name: tensor.contiguous() for name, tensor in as_stored.items()}, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()


def test_it_returns_the_sha256_of_the_file(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    sha256 = write_safetensors(path, tensors.items(), dtype=torch.float16)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == hash_weights([path])


def test_the_data_starts_aligned(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors.items(), dtype=torch.float32)
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_saving_in_half_leaves_the_full_precision_weights_as_they_were(tmp_path: Path) -> None:
    network = nn.Linear(64, 64)
    addresses = [parameter.data_ptr() for parameter in network.parameters()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(3):
        write_safetensors(tmp_path / "model.safetensors", network.state_dict().items(), dtype=torch.float16)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    assert [parameter.data_ptr() for parameter in network.parameters()] == addresses


def test_diffusers_loads_what_it_writes(tiny_sdxl: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
    unet.save_config(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_safetensors(path, unet.state_dict().items(), dtype=torch.float32)
    loaded, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (70_000.0, torch.float16, "big.weight holds 70000, float16 ends at 65504; save in a wider dtype"),
        (-65_520.0, torch.float16, "big.weight holds 65520, float16 ends at 65504"),
        (3.4e38, torch.bfloat16, "big.weight holds 3.4e.38, bfloat16 ends at 3.38953e.38"),
        (float("nan"), torch.float32, "big.weight holds NaN or infinity"),
        (float("inf"), torch.float16, "big.weight holds NaN or infinity"),
    ],
)
def test_a_value_that_cannot_be_stored_leaves_no_file_and_the_old_one_whole(
    value: float, dtype: torch.dtype, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("the checkpoint before")
    pairs = [("fine", torch.ones(2)), ("big.weight", torch.tensor([1.0, value]))]
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(path, pairs, dtype=dtype)
    assert path.read_text() == "the checkpoint before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_largest_half_precision_value_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, [("edge", torch.tensor([65_504.0, -65_504.0]))], dtype=torch.float16)
    assert load_file(path)["edge"].tolist() == [65_504.0, -65_504.0]


def test_only_one_cast_copy_is_alive_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storages: list[weakref.ref[torch.UntypedStorage]] = []
    num_alive: list[int] = []
    cast = Tensor.to

    def watched_cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        copy = cast(tensor, dtype)
        storages.append(weakref.ref(copy.untyped_storage()))
        num_alive.append(sum(storage() is not None for storage in storages))
        return copy

    monkeypatch.setattr(Tensor, "to", watched_cast)
    pairs = [(str(i), torch.ones(4)) for i in range(5)]
    write_safetensors(tmp_path / "model.safetensors", pairs, dtype=torch.float16)
    assert num_alive == [1, 1, 1, 1, 1]


def test_a_file_cut_anywhere_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors.items(), dtype=torch.float32)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="is not a complete safetensors file"):
            read_header(path)


def test_read_header_tells_name_dtype_and_shape(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors.items(), dtype=torch.bfloat16)
    header = read_header(path)
    assert header["conv.weight"] == TensorRef(path, "conv.weight", "BF16", (8, 3, 3, 3))
    assert header["ids"] == TensorRef(path, "ids", "I64", (3,))


def test_hash_weights_of_several_files_depends_on_content_and_order_not_on_names(tmp_path: Path) -> None:
    first, second, moved = tmp_path / "a", tmp_path / "b", tmp_path / "z"
    first.write_text("one")
    second.write_text("two")
    moved.write_text("one")
    assert hash_weights([first, second]) == hash_weights([moved, second])
    assert len({hash_weights([first, second]), hash_weights([second, first]), hash_weights([first])}) == 3


def test_the_header_is_json_with_the_metadata_the_libraries_ask_for(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, [("w", torch.ones(2, 3))], dtype=torch.float16)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    }
