"""Comparisons of tiny models: whose pictures they are, their distances, the folder, LoRAs, and what is refused."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.model_variants import copy_model, edit_json, edit_part, write_single_file
from tests.export.checkpoints import publish
from tuitrain.engine.diffusion import build_noise_schedule
from tuitrain.engine.sampling import build_sampling_scheduler
from tuitrain.engine.sdxl import build_network
from tuitrain.engine.weight_files import read_json
from tuitrain.errors import CheckpointError, ConfigError, ExportError, ModelError
from tuitrain.export.compare import compare
from tuitrain.export.comparison import CompareOptions, distance_rows
from tuitrain.export.grid import GridPrompt, draw_grid
from tuitrain.export.lora import LoraOptions, extract_lora
from tuitrain.export.lora_modules import block_modules
from tuitrain.export.progress import ProgressReport
from tuitrain.runs.checkpoints import delete_checkpoint

PROMPT = "a red ball"
OPTIONS = CompareOptions(prompts=(PROMPT,), seed=3, num_inference_steps=3, size_hw=(32, 48))
SINGLE_STEP = CompareOptions(prompts=(PROMPT,), num_inference_steps=1, size_hw=(32, 32))

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tuned(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL with every tensor of its UNet changed by noise of a tenth."""

    def change(tensors: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(5)
        return {
            name: tensor + 0.1 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    return edit_part(copy_model(tiny_sdxl, tmp_path_factory.mktemp("tuned") / "model"), "unet", change)


@pytest.fixture(scope="module")
def lora(tuned: Path, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "small.safetensors"
    extract_lora(tuned / "unet", path, LoraOptions(ranks=(4,)), base=str(tiny_sdxl))
    return path


@pytest.fixture
def checkpoint(tiny_sdxl: Path, tuned: Path, tmp_path: Path) -> Path:
    return publish(tmp_path / "runs", str(tiny_sdxl), tuned / "unet", validation_size=[32, 48])


def changed_lora(lora: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    tensors = load_file(lora)
    edited = change(tensors)
    save_file({name: tensor.clone() for name, tensor in edited.items()}, target)
    return target


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def diffusers_picture(model: Path, options: CompareOptions, *, lora: Path | None = None) -> np.ndarray[Any, Any]:
    """What diffusers' pipeline draws, with the sampler of a run's samples."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    config = read_json(model / "scheduler" / "scheduler_config.json")
    pipeline.scheduler = build_sampling_scheduler(config, build_noise_schedule(config))
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    assert options.size_hw is not None
    picture = pipeline(
        options.prompts[0],
        negative_prompt=options.negative_prompt,
        height=options.size_hw[0],
        width=options.size_hw[1],
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        generator=torch.Generator().manual_seed(options.seed),
    ).images[0]
    return np.asarray(picture).astype(int)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- whose pictures they are


def test_pictures_are_those_of_diffusers_with_each_model(
    checkpoint: Path, tiny_sdxl: Path, tuned: Path, lora: Path, tmp_path: Path
) -> None:
    options = replace(OPTIONS, negative_prompt="fog")
    half = changed_lora(lora, tmp_path / "half.safetensors", lambda tensors: _with_alpha(tensors, 0.5))
    compare([checkpoint], tmp_path / "out", options, loras=[lora, half])
    expected = {
        "base": diffusers_picture(tiny_sdxl, options),
        "checkpoint_0000": diffusers_picture(tuned, options),
        "lora_0000": diffusers_picture(tiny_sdxl, options, lora=lora),
        "lora_0001": diffusers_picture(tiny_sdxl, options, lora=half),
    }
    drawn = {name: pixels(tmp_path / "out" / "prompt_0000" / f"0000-{name}.png") for name in expected}
    assert {name: np.abs(drawn[name] - expected[name]).max() for name in expected} == pytest.approx(
        dict.fromkeys(expected, 0), abs=1
    )
    names = sorted(expected)
    assert all(np.abs(drawn[a] - drawn[b]).max() > 3 for a in names for b in names if a < b)


def _with_alpha(tensors: Tensors, factor: float) -> Tensors:
    return {name: tensor * factor if name.endswith(".alpha") else tensor for name, tensor in tensors.items()}


def test_a_lora_of_full_rank_draws_as_the_checkpoint_does(tiny_sdxl: Path, tuned: Path, tmp_path: Path) -> None:
    def only_blocks(tensors: Tensors) -> Tensors:
        base = load_file(tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors")
        is_covered = {name for name in tensors if "block" in name and tensors[name].ndim > 1}
        return {name: tensor if name in is_covered else base[name] for name, tensor in tensors.items()}

    blocks = edit_part(copy_model(tuned, tmp_path / "blocks"), "unet", only_blocks)
    full = LoraOptions(ranks=(10_000,), dtype=torch.float32)
    extract_lora(blocks / "unet", tmp_path / "full.safetensors", full, base=str(tiny_sdxl))
    comparison = compare(
        [blocks / "unet"], tmp_path / "out", OPTIONS, loras=[tmp_path / "full.safetensors"], base=str(tiny_sdxl)
    )
    assert comparison.mean_distance("lora_0000", "checkpoint_0000").relative < 1e-3
    assert comparison.mean_distance("checkpoint_0000", "base").relative > 0.01


def test_the_other_spelling_of_keys_and_a_missing_alpha_draw_the_same(
    checkpoint: Path, tiny_sdxl: Path, lora: Path, tmp_path: Path
) -> None:
    config = read_json(tiny_sdxl / "unet" / "config.json")
    with torch.device("meta"):
        modules = block_modules(build_network("unet", config), config)
    by_key = {module.key: module.weight.removesuffix(".weight").replace(".", "_") for module in modules}

    def respelled(tensors: Tensors) -> Tensors:
        split = {name: name.partition(".") for name in tensors if not name.endswith(".alpha")}
        return {f"lora_unet_{by_key[key]}.{rest}": tensors[name] for name, (key, _, rest) in split.items()}

    other = changed_lora(lora, tmp_path / "other.safetensors", respelled)
    compare([checkpoint], tmp_path / "out", SINGLE_STEP, loras=[lora, other])
    one, two = (pixels(tmp_path / "out" / "prompt_0000" / f"0000-lora_{index:04d}.png") for index in range(2))
    assert (one == two).all()


def test_what_a_checkpoint_predicts_is_sampled_so_and_the_base_as_it_was_made(
    tiny_sdxl: Path, tuned: Path, lora: Path, tmp_path: Path
) -> None:
    checkpoint = publish(
        tmp_path / "runs", str(tiny_sdxl), tuned / "unet", prediction_type="v_prediction", zero_terminal_snr=True
    )
    comparison = compare([checkpoint], tmp_path / "out", OPTIONS, loras=[lora])
    assert [(model.kind, model.prediction_type, model.zero_terminal_snr) for model in comparison.models] == [
        ("base", "epsilon", False),
        ("checkpoint", "v_prediction", True),
        ("lora", "v_prediction", True),
    ]
    base = pixels(tmp_path / "out" / "prompt_0000" / "0000-base.png")
    assert np.abs(base - diffusers_picture(tiny_sdxl, OPTIONS)).max() <= 1
    edit_json(
        copy_model(tuned, tmp_path / "v") / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    as_base = compare([tuned / "unet"], tmp_path / "as_base", OPTIONS, base=str(tmp_path / "v"))
    assert as_base.models[0].prediction_type == "v_prediction"
    trained = pixels(tmp_path / "out" / "prompt_0000" / "0000-checkpoint_0000.png")
    assert (trained == pixels(tmp_path / "as_base" / "prompt_0000" / "0000-base.png")).all()


def test_a_single_file_base_draws_as_the_folder_it_was_made_of(tiny_sdxl: Path, tuned: Path, tmp_path: Path) -> None:
    base = str(write_single_file(tiny_sdxl, tmp_path / "base.safetensors"))
    checkpoint = publish(tmp_path / "runs", base, tuned / "unet", model_config_dir=str(tiny_sdxl))
    compare([checkpoint], tmp_path / "single", OPTIONS)
    compare([tuned / "unet"], tmp_path / "folder", OPTIONS, base=str(tiny_sdxl))
    for name in ("base", "checkpoint_0000"):
        path = f"prompt_0000/0000-{name}.png"
        assert (pixels(tmp_path / "single" / path) == pixels(tmp_path / "folder" / path)).all()


# ---- numbers


def test_distances_are_those_of_the_final_latents(
    checkpoint: Path, tiny_sdxl: Path, tuned: Path, tmp_path: Path
) -> None:
    comparison = compare([checkpoint], tmp_path / "out", OPTIONS)
    z = {}
    for name, model in (("base", tiny_sdxl), ("checkpoint_0000", tuned)):
        pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
        config = read_json(model / "scheduler" / "scheduler_config.json")
        pipeline.scheduler = build_sampling_scheduler(config, build_noise_schedule(config))
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(3)
        z[name] = pipeline(
            PROMPT, height=32, width=48, num_inference_steps=3, generator=noise, output_type="latent"
        ).images
    difference = (z["base"] - z["checkpoint_0000"]).norm().item()
    base, trained = comparison.pictures
    assert base.distances["checkpoint_0000"].relative == pytest.approx(difference / z["checkpoint_0000"].norm().item())
    assert trained.distances["base"].relative == pytest.approx(difference / z["base"].norm().item())
    assert trained.distances["base"].rms == pytest.approx(difference / (4 * 8 * 12) ** 0.5)
    assert base.distances["checkpoint_0000"].rms == trained.distances["base"].rms


def test_models_that_are_the_same_are_no_distance_apart(tiny_sdxl: Path, tmp_path: Path) -> None:
    comparison = compare([tiny_sdxl / "unet"], tmp_path / "out", SINGLE_STEP, base=str(tiny_sdxl))
    assert comparison.mean_distance("checkpoint_0000", "base").relative == 0
    assert distance_rows(comparison)[0] == {"model": "base", "to base": "-", "to tiny_sdxl": "0.000 (rms 0.000)"}


# ---- the folder


def test_the_folder_holds_pictures_a_grid_and_numbers(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    prompts = ("a ball", "../../evil\x1b[2J\n\u202e " + "long " * 5000)
    options = CompareOptions(prompts=prompts, num_images=2, num_inference_steps=1, size_hw=(32, 48))
    comparison = compare([checkpoint, checkpoint], tmp_path / "deep" / "out", options, loras=[lora])
    out = tmp_path / "deep" / "out"
    models = ("base", "checkpoint_0000", "checkpoint_0001", "lora_0000")
    pictures = {
        f"prompt_{prompt:04d}/{image:04d}-{model}.png" for prompt in (0, 1) for image in (0, 1) for model in models
    }
    assert files_in(out) == {"grid.png", "comparison.json", *pictures}
    assert {pixels(out / name).shape for name in pictures} == {(32, 48, 3)}
    assert [model.label for model in comparison.models] == ["base", "step 7", "step 7 (2)", "small"]
    described = json.loads((out / "comparison.json").read_text())
    assert described == json.loads(json.dumps(comparison.as_values()))
    assert described["prompts"] == list(prompts)
    assert {picture["file"] for picture in described["pictures"]} == pictures
    assert described["mean_distances"]["lora_0000"].keys() == {"base", "checkpoint_0000", "checkpoint_0001"}
    first, second = (pixels(out / "prompt_0000" / f"000{image}-base.png") for image in (0, 1))
    assert (first != second).any()


def test_the_size_is_that_of_the_runs_samples_else_the_models_own(
    checkpoint: Path, tiny_sdxl: Path, tuned: Path, tmp_path: Path
) -> None:
    options = CompareOptions(prompts=(PROMPT,), num_inference_steps=1)
    assert compare([checkpoint], tmp_path / "a", options).size_hw == (32, 48)
    assert compare([tuned / "unet"], tmp_path / "b", options, base=str(tiny_sdxl)).size_hw == (64, 64)


def test_one_unet_is_in_memory_at_a_time(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    num_unets = []

    def count(report: ProgressReport) -> None:
        if report.phase == "draw" or report.done == 0:  # 0.2 s each
            num_unets.append(sum(type(one) is UNet2DConditionModel for one in gc.get_objects()))

    gc.collect()
    gc.disable()
    try:
        compare([checkpoint], tmp_path / "out", SINGLE_STEP, loras=[lora], progress=count)
    finally:
        gc.enable()
    assert max(num_unets) == 1
    assert num_unets[-1] == 0


class CancelledError(Exception):
    pass


@pytest.mark.parametrize(("phase", "share"), [("check", 0), ("draw", 0.5), ("decode", 1), ("write", 0.5), ("write", 1)])
def test_a_cancelled_comparison_leaves_nothing(phase: str, share: float, checkpoint: Path, tmp_path: Path) -> None:
    before = files_in(tmp_path)

    def cancel(report: ProgressReport) -> None:
        if report.phase == phase and report.share >= share:
            raise CancelledError

    with pytest.raises(CancelledError):
        compare([checkpoint], tmp_path / "new" / "out", SINGLE_STEP, progress=cancel)
    assert files_in(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_progress_counts_steps_and_pictures(checkpoint: Path, tmp_path: Path) -> None:
    reports: list[ProgressReport] = []
    compare([checkpoint], tmp_path / "out", OPTIONS, progress=reports.append)
    ends = {report.phase: (report.done, report.total, report.unit) for report in reports if report.phase != "check"}
    assert ends == {"draw": (6, 6, "steps"), "decode": (2, 2, "pictures"), "write": (2, 2, "pictures")}
    drawn = [report.done for report in reports if report.phase == "draw"]
    assert drawn == list(range(7))


def test_the_checkpoint_is_held_while_it_is_read(checkpoint: Path, tmp_path: Path) -> None:
    def delete(report: ProgressReport) -> None:
        with pytest.raises(CheckpointError, match="is being read"):
            delete_checkpoint(checkpoint)
        raise CancelledError

    with pytest.raises(CancelledError):
        compare([checkpoint], tmp_path / "out", SINGLE_STEP, progress=delete)


# ---- bases


def test_another_base_is_told(checkpoint: Path, tuned: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    assert compare([checkpoint], tmp_path / "same", SINGLE_STEP).warnings == ()
    (warning,) = compare([checkpoint], tmp_path / "other", SINGLE_STEP, base=str(tuned)).warnings
    assert str(checkpoint) in warning and str(tiny_sdxl) in warning


def test_a_unet_folder_needs_a_base(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say what it was trained from"):
        compare([tuned / "unet"], tmp_path / "out", OPTIONS)


def test_a_weight_that_is_not_finite_is_named(tiny_sdxl: Path, tuned: Path, tmp_path: Path) -> None:
    broken = copy_model(tuned, tmp_path / "broken")
    edit_part(broken, "unet", lambda tensors: {**tensors, "conv_in.bias": tensors["conv_in.bias"] * torch.nan})
    with pytest.raises(ExportError, match=r"conv_in\.bias in .*broken"):
        compare([broken / "unet"], tmp_path / "out", SINGLE_STEP, base=str(tiny_sdxl))
    assert not (tmp_path / "out").exists()


def test_weights_that_draw_nothing_finite_are_refused(tiny_sdxl: Path, tuned: Path, tmp_path: Path) -> None:
    wild = copy_model(tuned, tmp_path / "wild")
    edit_part(wild, "unet", lambda tensors: {**tensors, "conv_out.weight": tensors["conv_out.weight"] * 1e38})
    with pytest.raises(ExportError, match="draws NaN or infinity"):
        compare([wild / "unet"], tmp_path / "out", OPTIONS, base=str(tiny_sdxl))


# ---- LoRAs that do not fit


def _first(tensors: Tensors, suffix: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(suffix))


def _renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "foreign": (lambda tensors: {"conv_in.weight": torch.zeros(2)}, r"is no LoRA, it holds conv_in\.weight"),
    "unknown layer": (
        lambda tensors: _renamed(tensors, "lora_unet_middle_block_0_", "lora_unet_middle_block_9_"),
        "no layer for these keys .*lora_unet_middle_block_9_",
    ),
    "text encoder": (
        lambda tensors: {**tensors, "lora_te1_x.lora_down.weight": torch.zeros(1)},
        "changes the text encoders too.*lora_te1_x",
    ),
    "left over": (
        lambda tensors: {**tensors, "lora_unet_out_0.diff": torch.zeros(1)},
        r"more than .*lora_unet_out_0\.diff",
    ),
    "no up": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != _first(tensors, "lora_up.weight")},
        r"has no lora_unet_.*\.lora_up\.weight",
    ),
    "shape": (
        lambda tensors: {**tensors, _first(tensors, "lora_down.weight"): torch.zeros(4, 3)},
        r"lora_unet_\w+ in .* does not fit: lora_down \[4, 3\]",
    ),
    "scalar": (
        lambda tensors: {**tensors, _first(tensors, "lora_down.weight"): torch.tensor(1.0)},
        r"does not fit: lora_down \[\]",
    ),
    "vector alpha": (
        lambda tensors: {**tensors, _first(tensors, ".alpha"): torch.ones(2)},
        r"lora_unet_\w+\.alpha in .* has 2 numbers",
    ),
    "integers": (
        lambda tensors: {**tensors, _first(tensors, ".alpha"): torch.tensor(4)},
        r"no floating-point numbers in lora_unet_\w+\.alpha",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_lora_that_does_not_fit_is_refused_by_key(
    kind: str, tiny_sdxl: Path, tuned: Path, lora: Path, tmp_path: Path
) -> None:
    change, reason = WRONG[kind]
    wrong = changed_lora(lora, tmp_path / "wrong.safetensors", change)
    with pytest.raises(ConfigError, match=reason):
        compare([tuned / "unet"], tmp_path / "out", SINGLE_STEP, loras=[wrong], base=str(tiny_sdxl))
    assert not (tmp_path / "out").exists()


def test_a_lora_that_is_not_finite_is_refused(tiny_sdxl: Path, tuned: Path, lora: Path, tmp_path: Path) -> None:
    wrong = changed_lora(lora, tmp_path / "wrong.safetensors", lambda tensors: _with_alpha(tensors, float("inf")))
    with pytest.raises(ExportError, match=r"\.weight in .*wrong\.safetensors holds NaN"):
        compare([tuned / "unet"], tmp_path / "out", SINGLE_STEP, loras=[wrong], base=str(tiny_sdxl))


def test_a_layer_named_twice_is_refused(tiny_sdxl: Path, tuned: Path, lora: Path, tmp_path: Path) -> None:
    def doubled(tensors: Tensors) -> Tensors:
        resnet = {name: tensor for name, tensor in tensors.items() if "middle_block_0_in_layers_2" in name}
        return {**tensors, **_renamed(resnet, "middle_block_0_in_layers_2", "mid_block_resnets_0_conv1")}

    wrong = changed_lora(lora, tmp_path / "wrong.safetensors", doubled)
    with pytest.raises(ConfigError, match=r"names one layer twice: lora_unet_\w+, lora_unet_\w+"):
        compare([tuned / "unet"], tmp_path / "out", SINGLE_STEP, loras=[wrong], base=str(tiny_sdxl))


def test_a_file_that_is_no_safetensors_is_refused(tiny_sdxl: Path, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("hello")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        compare(
            [tuned / "unet"], tmp_path / "out", SINGLE_STEP, loras=[tmp_path / "a.safetensors"], base=str(tiny_sdxl)
        )


# ---- the request


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompts": ()}, "there is no prompt"),
        ({"prompts": ("\udcff",)}, "is no text"),
        ({"negative_prompt": "\udcff"}, "is no text"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is"),
        ({"num_images": 0}, "at least 1"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan"),
        ({"guidance_scale": -1.0}, "guidance scale is -1"),
        ({"size_hw": (36, 32)}, "36x32 pixels, they need multiples of 8"),
        ({"size_hw": (0, 32)}, "multiples of 8"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CompareOptions(**{"prompts": (PROMPT,), **options})


@pytest.mark.parametrize("num_steps", [1, 30, 334, 500, 501, 999])
def test_as_many_steps_as_are_allowed_stay_within_the_timesteps(num_steps: int, tiny_sdxl: Path) -> None:
    config = read_json(tiny_sdxl / "scheduler" / "scheduler_config.json")
    scheduler = build_sampling_scheduler(config, build_noise_schedule(config))
    scheduler.set_timesteps(num_steps)
    assert int(scheduler.timesteps.max()) < scheduler.config.num_train_timesteps == 1000


def test_more_steps_than_the_model_has_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is 1000, it can be 999 at most"):
        compare([checkpoint], tmp_path / "out", CompareOptions(prompts=(PROMPT,), num_inference_steps=1000))


def test_nothing_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        compare([checkpoint], tmp_path / "out", OPTIONS)


# ---- the grid


def grid(size: tuple[int, int], *, columns: int = 2, prompts: tuple[str, ...] = ("",), footer: str = "") -> Image.Image:
    colours = ["#ff0000", "#0000ff", "#00ff00"][:columns]
    row = [Image.new("RGB", size, colour) for colour in colours]
    return draw_grid(
        [f"model {index}" for index in range(columns)], [GridPrompt(text, [row]) for text in prompts], footer=footer
    )


def extent(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Width and height of the area of one colour."""
    ys, xs = np.nonzero((np.asarray(picture) == colour).all(axis=-1))
    return int(xs.max() - xs.min()) + 1, int(ys.max() - ys.min()) + 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (256, 256)),
        ((96, 64), (288, 192)),
        ((300, 200), (300, 200)),
        ((1024, 1024), (512, 512)),
        ((832, 1216), (350, 512)),
    ],
)
def test_pictures_are_shown_between_256_and_512_pixels(size: tuple[int, int], shown: tuple[int, int]) -> None:
    drawn = grid(size)
    assert extent(drawn, (255, 0, 0)) == shown
    assert extent(drawn, (0, 0, 255)) == shown


def test_a_long_or_hostile_prompt_takes_two_lines_and_never_widens_the_grid() -> None:
    short, long = grid((64, 64), prompts=("x",)), grid((64, 64), prompts=("漢字 \x1b]0;x\x07\n" + "word " * 100_000,))
    assert long.width == short.width
    assert 0 < long.height - short.height < 40
    without_spaces = grid((64, 64), prompts=("w" * 100_000,))
    assert without_spaces.size == long.size


def test_text_stays_inside_its_column() -> None:
    row = [Image.new("RGB", (64, 64), "#ff0000")] * 2
    with_long_label = np.asarray(draw_grid(["m" * 500, ""], [GridPrompt("", [row])], footer=""))
    without = np.asarray(draw_grid(["", ""], [GridPrompt("", [row])], footer=""))
    changed = np.nonzero((with_long_label != without).any(axis=(0, 2)))[0]
    assert changed.min() >= 16 and changed.max() < 16 + 256


def test_each_prompt_stands_over_its_own_pictures() -> None:
    blank = np.asarray(grid((64, 64), prompts=("", "")))
    assert np.asarray(grid((64, 64), prompts=("x", ""))).shape[0] > blank.shape[0]
    first = np.asarray(grid((64, 64), prompts=("xxx", "y")))
    second = np.asarray(grid((64, 64), prompts=("x", "yyy")))
    rows = np.nonzero((first != second).any(axis=(1, 2)))[0]
    assert rows.min() < 100 and rows.max() > 256
