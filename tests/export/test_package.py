"""Packaged folders: what is in them, what loads them, and what is refused."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from tests.engine.harness import small_config, train_well, write_pictures
from tests.engine.model_variants import (
    copy_model,
    edit_json,
    edit_part,
    rename_to_fp16,
)
from tests.export.checkpoints import UNET_FILE, publish, unet_tensors
from tests.export.stored_bases import STORED, in_hub_cache, settings_of
from tuitrain.commands.program import app
from tuitrain.engine.base_model import hub_tensor_name
from tuitrain.engine.weights import LazyTensor
from tuitrain.errors import CheckpointError, ConfigError, ExportError, ModelError
from tuitrain.export.package import DtypeName, Package, package_folder
from tuitrain.export.progress import Progress, ProgressReport, WorkCount, no_progress
from tuitrain.export.verification import verify_tensors
from tuitrain.runs.checkpoints import delete_checkpoint, list_checkpoints

FROZEN = {"text_encoder": "model", "text_encoder_2": "model", "vae": "diffusion_pytorch_model"}
ALL = ("unet", *FROZEN)


def run_lines(package: Package) -> StableDiffusionXLPipeline:
    """What the printed lines of Python make."""
    names: dict[str, Any] = {}
    exec("\n".join(package.loading), names)
    return names["pipeline"]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder, by part and name."""
    paths = sorted(folder.rglob("*.safetensors"))
    return {f"{path.parent.name}.{name}": tensor for path in paths for name, tensor in load_file(path).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name].to(tensor.dtype), tensor)] == []


@pytest.fixture
def checkpoint(half_sdxl: Path, trained: Path, tmp_path: Path) -> Path:
    """A checkpoint of a run that trained the tiny SDXL."""
    return publish(tmp_path / "runs", str(half_sdxl), trained / "unet")


# ---- what is written


@pytest.mark.parametrize("stored", STORED)
def test_every_way_to_store_the_base_gives_the_same_tensors(
    stored: str, half_sdxl: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = STORED[stored](half_sdxl, tmp_path, monkeypatch)
    checkpoint = publish(tmp_path / "runs", base, trained / "unet", **settings_of(stored, half_sdxl))
    package_folder(checkpoint, tmp_path / "out", dtype="float16")
    expected = tensors_in(half_sdxl) | {f"unet.{name}": tensor.half() for name, tensor in unet_tensors(trained).items()}
    assert_same(tensors_in(tmp_path / "out"), expected)


def test_a_folder_holds_what_a_pipeline_needs_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    package_folder(checkpoint, tmp_path / "out")
    tokenizer_files = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    assert files_in(tmp_path / "out") == {
        "LICENSE.md",
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/config.json" for part in (*FROZEN, "unet")),
        *(f"{part}/{stem}.safetensors" for part, stem in FROZEN.items()),
        "unet/diffusion_pytorch_model.safetensors",
        *(f"{tokenizer}/{name}" for tokenizer in ("tokenizer", "tokenizer_2") for name in tokenizer_files),
    }


def test_the_frozen_files_are_the_bases_own_bytes_and_no_links(
    half_sdxl: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = in_hub_cache(half_sdxl, tmp_path, monkeypatch)
    out = tmp_path / "out"
    package_folder(publish(tmp_path / "runs", name, trained / "unet"), out, link=True)
    written = {"README.md", "model_index.json", "scheduler/scheduler_config.json"}
    frozen = {path for path in files_in(out) - written if not path.startswith("unet/")}
    assert len(frozen) == 15
    assert [path for path in frozen if (out / path).read_bytes() != (half_sdxl / path).read_bytes()] == []
    assert [path for path in out.rglob("*") if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)] == []


def test_link_shares_the_weights_of_a_plain_base(half_sdxl: Path, checkpoint: Path, tmp_path: Path) -> None:
    package = package_folder(checkpoint, tmp_path / "out", link=True)
    linked = {path for path in files_in(tmp_path / "out") if (tmp_path / "out" / path).stat().st_nlink > 1}
    assert linked == {f"{part}/{stem}.safetensors" for part, stem in FROZEN.items()}
    assert package.num_linked_bytes == sum((half_sdxl / path).stat().st_size for path in linked)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_unet_is_the_checkpoints_after_one_rounding(
    dtype: DtypeName, checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    package_folder(checkpoint, tmp_path / "out", dtype=dtype)
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in unet_tensors(trained).items()}
    packaged = unet_tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in packaged.values()} == {getattr(torch, dtype)}
    assert_same(packaged, expected)


def test_a_v_prediction_run_says_so_in_the_scheduler(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = publish(
        tmp_path / "runs", str(half_sdxl), trained / "unet", prediction_type="v_prediction", zero_terminal_snr=True
    )
    package = package_folder(checkpoint, tmp_path / "out")
    own, written = (
        json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        for folder in (half_sdxl, tmp_path / "out")
    )
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert written == own | changes
    assert (package.prediction_type, package.zero_terminal_snr) == ("v_prediction", True)


def test_a_run_without_the_zero_terminal_snr_of_its_base_says_so(
    half_sdxl: Path, trained: Path, tmp_path: Path
) -> None:
    base = copy_model(half_sdxl, tmp_path / "base")
    edit_json(base / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    checkpoint = publish(tmp_path / "runs", str(base), trained / "unet", zero_terminal_snr=False)
    assert not package_folder(checkpoint, tmp_path / "out").zero_terminal_snr
    written = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert written["rescale_betas_zero_snr"] is False


def test_the_card_names_base_run_step_and_prompts_and_no_place_on_this_machine(
    half_sdxl: Path, trained: Path, tmp_path: Path
) -> None:
    settings = {"validation_prompts": ["a cat, `quoted`"], "data_loader": {"caption_prefix": "robocat style,"}}
    checkpoint = publish(tmp_path / "runs", str(half_sdxl), trained / "unet", **settings)
    package_folder(checkpoint, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "- base model: base",
        f"- run: {checkpoint.parent.parent.name}",
        "- step: 7",
        '    "a cat, `quoted`"',
        '    "robocat style,"',
        "The licence of the base model holds for this one: LICENSE.md.",
    ):
        assert line in card.splitlines()
    assert str(tmp_path) not in card
    assert str(half_sdxl.parent) not in card


def test_the_modes_are_those_of_the_umask(checkpoint: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        package_folder(checkpoint, tmp_path / "out")
    finally:
        os.umask(old)
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o750}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o640}


# ---- names and dtypes


@pytest.mark.parametrize(
    ("fp16_parts", "options", "style", "dtype"),
    [
        ((), {}, None, "float16"),
        ((), {"dtype": "bfloat16"}, None, "bfloat16"),
        (ALL, {}, "fp16", "float16"),
        (ALL, {"variant": "fp16"}, "fp16", "float16"),
        (ALL, {"variant": "none"}, None, "float16"),
        (ALL, {"dtype": "float32"}, None, "float32"),
        (("unet", "text_encoder"), {}, None, "float16"),
    ],
)
def test_all_names_are_of_one_style_and_fp16_means_float16(
    fp16_parts: tuple[str, ...],
    options: dict[str, Any],
    style: str | None,
    dtype: str,
    half_sdxl: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    base = rename_to_fp16(copy_model(half_sdxl, tmp_path / "base"), fp16_parts)
    checkpoint = publish(tmp_path / "runs", str(base), trained / "unet")
    package = package_folder(checkpoint, tmp_path / "out", **options)
    assert (package.variant, package.dtype) == (style, dtype)
    names = {path.name for path in (tmp_path / "out").rglob("*.safetensors")}
    ending = ".fp16.safetensors" if style else ".safetensors"
    assert names == {f"model{ending}", f"diffusion_pytorch_model{ending}"}
    dtypes = {tensor.dtype for tensor in tensors_in(tmp_path / "out").values()}
    assert style is None or dtypes == {torch.float16}


@pytest.mark.parametrize("style", ["fp16", None])
def test_the_printed_lines_load_the_package(style: str | None, half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    base = rename_to_fp16(copy_model(half_sdxl, tmp_path / "base")) if style else half_sdxl
    package = package_folder(publish(tmp_path / "runs", str(base), trained / "unet"), tmp_path / "out", dtype="float16")
    assert ('variant="fp16"' in package.loading[-1]) == (style is not None)
    pipeline = run_lines(package)
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    expected = {name: tensor.half() for name, tensor in unet_tensors(trained).items()}
    assert_same(pipeline.unet.state_dict(), expected)
    loaded_text = {hub_tensor_name("text_encoder", name): t for name, t in pipeline.text_encoder.state_dict().items()}
    text = load_file(half_sdxl / "text_encoder" / "model.safetensors")
    assert_same({name: loaded_text[name] for name in text}, {name: tensor.half() for name, tensor in text.items()})


def test_shards_of_a_frozen_part_are_renamed_with_their_index(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    base = rename_to_fp16(copy_model(half_sdxl, tmp_path / "base"))
    folder = base / "text_encoder_2"
    tensors = load_file(folder / "model.fp16.safetensors")
    (folder / "model.fp16.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for index, part in enumerate((names[::2], names[1::2])):
        shard = f"model.fp16-{index + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    package = package_folder(publish(tmp_path / "runs", str(base), trained / "unet"), tmp_path / "out", variant="none")
    written = {path.name for path in (tmp_path / "out" / "text_encoder_2").iterdir()} - {"config.json"}
    shards = {f"model-{index:05d}-of-00002.safetensors" for index in (1, 2)}
    assert written == {"model.safetensors.index.json", *shards}
    loaded = run_lines(package).text_encoder_2.state_dict()
    assert_same({name: loaded[name] for name in tensors}, tensors)


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"variant": "fp16", "dtype": "float32"}])
def test_fp16_names_are_refused_where_something_is_wider(
    options: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        package_folder(checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# ---- what is refused


def test_another_base_is_refused(half_sdxl: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = edit_part(copy_model(half_sdxl, tmp_path / "other"), "unet", nudge)
    with pytest.raises(ModelError, match=r"is not the one that .* was trained from") as error:
        package_folder(checkpoint, tmp_path / "out", base=str(other))
    assert "--allow-other-base" in error.value.problems[0].hint
    assert list(tmp_path.glob("*out*")) == []
    package = package_folder(checkpoint, tmp_path / "out", base=str(other), allow_other_base=True)
    (warning,) = package.warnings
    assert "is not the one that" in warning
    assert package.step == 7


def nudge(tensors: dict[str, Tensor]) -> None:
    tensors["conv_in.bias"] += 1


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with (checkpoint / UNET_FILE).open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\0" * 4)
    with pytest.raises(ExportError, match="is not as it was saved"):
        package_folder(checkpoint, tmp_path / "out")


def test_a_unet_folder_needs_a_base(half_sdxl: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say what it was trained from") as error:
        package_folder(checkpoint / "unet", tmp_path / "out")
    assert "--base" in error.value.problems[0].hint
    package = package_folder(checkpoint / "unet", tmp_path / "out", base=str(half_sdxl))
    assert (package.step, package.prediction_type) == (None, "epsilon")


def test_a_run_is_refused_with_the_name_of_its_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        package_folder(checkpoint.parent.parent, tmp_path / "out")
    assert str(checkpoint) in error.value.problems[0].hint


def test_what_exists_is_never_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("out", "dangling"):
        with pytest.raises(ConfigError, match="exists already"):
            package_folder(checkpoint, tmp_path / name)
    assert files_in(tmp_path / "out") == {"mine.txt"}


def test_folders_above_the_package_are_made_and_go_again_with_a_failure(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folders" / "out"
    with pytest.raises(CancelledError):
        package_folder(checkpoint, out, progress=cancel_at(0.5))
    assert not (tmp_path / "new").exists()
    package_folder(checkpoint, out)
    assert (out / "model_index.json").is_file()


def test_a_file_in_the_place_of_a_folder_is_told(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is not a folder"):
        package_folder(checkpoint, tmp_path / "file" / "new" / "out")


def test_a_checkpoint_that_is_being_written_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    unfinished = checkpoint.rename(checkpoint.with_name(f".tmp-1234-{checkpoint.name}"))
    for path in (unfinished, unfinished / "unet"):
        with pytest.raises(ConfigError, match="is being written"):
            package_folder(path, tmp_path / "out")


def test_the_checkpoint_is_held_from_the_first_to_the_last_byte(checkpoint: Path, tmp_path: Path) -> None:
    refused: dict[str, bool] = {}

    def delete(report: ProgressReport) -> None:
        with pytest.raises(CheckpointError, match="is being read"):
            delete_checkpoint(checkpoint)
        refused[report.phase] = True

    package_folder(checkpoint, tmp_path / "out", progress=delete)
    assert list(refused) == ["check", "copy", "unet", "verify copies", "verify unet"]
    delete_checkpoint(checkpoint)


def test_a_place_inside_the_checkpoint_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="inside the checkpoint"):
        package_folder(checkpoint, checkpoint / "package")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda tensors: tensors.update({"conv_in.weight": torch.zeros(32, 9, 3, 3)}), "inpainting"),
        (lambda tensors: {n: t for n, t in tensors.items() if n != "conv_out.bias"}, "lacks 1 of"),
        (lambda tensors: tensors.update({"lora.up": torch.zeros(2)}), "1 tensor that its config does not know"),
    ],
)
def test_another_architecture_is_refused_with_the_reason(
    edit: Callable[[dict[str, Tensor]], Any], reason: str, half_sdxl: Path, trained: Path, tmp_path: Path
) -> None:
    unet = edit_part(copy_model(trained, tmp_path / "model"), "unet", edit) / "unet"
    with pytest.raises(ModelError, match=reason):
        package_folder(unet, tmp_path / "out", base=str(half_sdxl))
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_pipeline_is_refused(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    base = copy_model(half_sdxl, tmp_path / "base")
    edit_json(base / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(ModelError, match="StableDiffusionXLImg2ImgPipeline"):
        package_folder(trained / "unet", tmp_path / "out", base=str(base))


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_what_float16_cannot_hold_is_refused_by_name(
    value: float, half_sdxl: Path, trained: Path, tmp_path: Path
) -> None:
    def overflow(tensors: dict[str, Tensor]) -> None:
        tensors["conv_out.weight"][0, 0, 0, 0] = value

    unet = edit_part(copy_model(trained, tmp_path / "model"), "unet", overflow) / "unet"
    with pytest.raises(ExportError, match=r"conv_out\.weight"):
        package_folder(unet, tmp_path / "out", base=str(half_sdxl), dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


class CancelledError(Exception):
    pass


def cancel_at(share: float) -> Progress:
    """Cancel when `share` of the bytes is done."""

    def cancel(report: ProgressReport) -> None:
        if report.share >= share:
            raise CancelledError

    return cancel


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.99, 1.0])
def test_a_cancelled_package_leaves_nothing(share: float, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        package_folder(checkpoint, tmp_path / "out", progress=cancel_at(share))
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_progress_goes_from_nothing_to_all(checkpoint: Path, tmp_path: Path) -> None:
    reports: list[ProgressReport] = []
    package_folder(checkpoint, tmp_path / "out", progress=reports.append)
    done = [report.done_bytes for report in reports]
    assert (done[0], done) == (0, sorted(done))
    assert {report.total_bytes for report in reports} == {done[-1]}
    ends = {report.phase: (report.done, report.total, report.unit) for report in reports}
    num_tensors = len(unet_tensors(checkpoint))
    assert list(ends) == ["check", "copy", "unet", "verify copies", "verify unet"]
    assert ends["check"] == (3, 3, "files")  # config and weights of the checkpoint, weights of the base
    assert ends["unet"] == ends["verify unet"] == (num_tensors, num_tensors, "tensors")
    assert all(done == total for done, total, _ in ends.values())


def test_verification_finds_every_difference() -> None:
    def lazy(**tensors: Tensor) -> dict[str, LazyTensor]:
        return {name: LazyTensor(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}

    source = lazy(a=torch.tensor([1.0, 1 / 3]), b=torch.ones(2))
    good = {"a": torch.tensor([1.0, 1 / 3]).half(), "b": torch.ones(2).half()}
    work = WorkCount(0, no_progress)
    verify_tensors("verify", lazy(**good), source, dtype=torch.float16, work=work)
    for wrong in (
        {"a": good["a"]},
        {**good, "c": good["a"]},
        {**good, "b": torch.ones(2)},
        {**good, "a": torch.tensor([1.0, 0.3335]).half()},
        {**good, "b": torch.tensor([1.0, float("nan")]).half()},
    ):
        with pytest.raises(ExportError):
            verify_tensors("verify", lazy(**wrong), source, dtype=torch.float16, work=work)


# ---- where the base lies


def test_a_checkpoint_of_a_real_run_knows_its_base_and_its_training(half_sdxl: Path, tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        half_sdxl,
        write_pictures(tmp_path / "pictures", num=2),
        "data_loader.caption_prefix=robocat style",
        max_train_steps=1,
        prediction_type="v_prediction",
        zero_terminal_snr=True,
    )
    run, _ = train_well(config)
    (checkpoint,) = list_checkpoints(run.checkpoints_dir)
    package = package_folder(checkpoint.path, tmp_path / "out")
    assert (package.step, package.prediction_type, package.zero_terminal_snr) == (1, "v_prediction", True)
    assert '    "robocat style"' in (tmp_path / "out" / "README.md").read_text().splitlines()
    packaged, saved = (unet_tensors(folder) for folder in (tmp_path / "out", checkpoint.path))
    assert_same(packaged, {name: tensor.half() for name, tensor in saved.items()})


def test_a_base_named_from_where_the_run_was_started_is_found_from_elsewhere(
    half_sdxl: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_model(half_sdxl, tmp_path / "work" / "base")
    monkeypatch.chdir(tmp_path / "work")
    checkpoint = publish(Path("runs"), "base", trained / "unet")
    monkeypatch.chdir(tmp_path)
    package = package_folder(checkpoint, tmp_path / "out")
    assert package.base_model == "base"


def test_a_base_that_is_gone_is_asked_for(half_sdxl: Path, trained: Path, tmp_path: Path) -> None:
    base = copy_model(half_sdxl, tmp_path / "base")
    checkpoint = publish(tmp_path / "runs", str(base), trained / "unet")
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="cannot be used") as error:
        package_folder(checkpoint, tmp_path / "out")
    assert "--base" in error.value.problems[0].hint
    package_folder(checkpoint, tmp_path / "out", base=str(tmp_path / "moved"))


# ---- the command


def test_the_command_ends_with_the_line_that_loads_the_package(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["package", str(checkpoint), "--out", str(tmp_path / "out"), "--dtype", "float16"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].strip() == (
        f'pipeline = StableDiffusionXLPipeline.from_pretrained("{tmp_path / "out"}", torch_dtype=torch.float16)'
    )
    assert f"InvokeAI: tuitrain install-invokeai {tmp_path / 'out'}" in result.stdout


def test_the_command_tells_programs_the_facts(checkpoint: Path, half_sdxl: Path, tmp_path: Path) -> None:
    arguments = ["package", str(checkpoint), "--out", str(tmp_path / "out"), "--json"]
    facts = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (facts["layout"], facts["step"], facts["base_model"]) == ("diffusers", 7, str(half_sdxl))
    assert facts["num_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "options", [["--variant", "bf16"], ["--dtype", "int8"], ["--single-file", "--link"], ["--single-file"]]
)
def test_a_wrong_request_is_exit_status_2(options: list[str], checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["package", str(checkpoint), "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "out").exists()
