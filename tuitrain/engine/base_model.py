"""Where the parts of an SDXL base model lie: a diffusers folder, a Hub repository, a single file; builds no network.

Everything that file names, configs and headers can tell is checked here, before the first tensor is read.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuitrain.engine.hub import fetch_model, is_hub_name
from tuitrain.engine.original_names import PREFIXES
from tuitrain.engine.weight_files import PARTS, find_weight_files, read_json, styles, weight_name
from tuitrain.engine.weights import FLOAT_DTYPES, TensorRef, read_header
from tuitrain.errors import ModelError, Problem

SDXL_BASE = Path(__file__).parent / "sdxl_base"
"""Configs and tokenizers of SDXL base 1.0, in diffusers layout without weights."""

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_TOKENIZER_FILES = ("tokenizer/*", "tokenizer_2/*")


@dataclass(frozen=True)
class Part:
    """One network of the base model, found and not yet read.

    Args:
        name: "unet", "vae", "text_encoder" or "text_encoder_2".
        where: its folder or file, for messages.
        config: its diffusers or transformers config.
        is_original: `tensors` has the names of the original layout, without prefix; else the Hub's.
        tensors: what its files hold.
        files: its weight files, in order.
    """

    name: str
    where: Path
    config: dict[str, Any]
    is_original: bool
    tensors: dict[str, TensorRef]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class BaseModel:
    """The parts of a base model.

    Args:
        parts: the four networks by name.
        tokenizer_root: the folder with `tokenizer/` and `tokenizer_2/`.
        folder: its diffusers folder; None for a single file.
    """

    parts: Mapping[str, Part]
    scheduler_config: dict[str, Any]
    force_zeros_for_empty_prompt: bool
    tokenizer_root: Path
    folder: Path | None


def open_base_model(
    model: str, *, hf_variant: str | None, vae_model: str | None, model_config_dir: str | None
) -> BaseModel:
    """Find the parts of `model` and check that they are an SDXL base model's; see `load_sdxl` for the arguments.

    Raises:
        ModelError: it is not there, incomplete, damaged, or another architecture.
    """
    if not model.strip():
        raise ModelError("there is no model: `model` is empty", hint="set `model` to a folder, file or Hub name")
    path = Path(model).expanduser()
    if path.is_file():
        base = _open_single_file(path, Path(model_config_dir).expanduser() if model_config_dir else None)
    elif model_config_dir:
        raise ModelError(
            f"model_config_dir is {model_config_dir}, but {model} is no single file and brings its own configs",
            hint="remove model_config_dir",
        )
    else:
        base = _open_folder(_find_folder(model, path, hf_variant), hf_variant)
    if vae_model is not None:
        base = replace(base, parts={**base.parts, "vae": _open_vae(vae_model, hf_variant)})
    check_is_sdxl(base)
    return base


# ---- a folder


def _find_folder(model: str, path: Path, hf_variant: str | None) -> Path:
    if path.is_dir():
        return path
    if path.is_symlink():
        raise ModelError(f"{path} is a link to {path.readlink()}, which does not exist")
    if not is_hub_name(model):
        raise ModelError(
            f"there is no folder or file {path.absolute()}",
            hint="set `model` to a diffusers folder, a .safetensors file, or a Hub name such as owner/name",
        )
    configs = [f"{part}/config.json" for part in PARTS]
    return fetch_model(
        model,
        descriptions=("model_index.json", "LICENSE*", "scheduler/*.json", *configs, *_TOKENIZER_FILES),
        weights=PARTS,
        hf_variant=hf_variant,
    )


def _open_folder(folder: Path, hf_variant: str | None) -> BaseModel:
    if not (folder / "model_index.json").is_file():
        raise ModelError(*_why_no_model_index(folder))
    index = read_json(folder / "model_index.json")
    for name in PARTS:
        if name in index and (index[name] is None or index[name] == [None, None]):
            raise ModelError(f"{folder} is a {index.get('_class_name')} without {name}{_REFINER[name]}")
    return BaseModel(
        parts={name: open_part(folder / name, name, hf_variant) for name in PARTS},
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        tokenizer_root=folder,
        folder=folder,
    )


_REFINER = {
    "text_encoder": ": the SDXL refiner has one text encoder, give the SDXL base model",
    "text_encoder_2": ": SDXL has two text encoders",
    "unet": "",
    "vae": "",
}


def _why_no_model_index(folder: Path) -> tuple[str]:
    if (folder / "checkpoint.json").is_file():
        return (f"{folder} is a checkpoint with the trained UNet alone: give the base model it was trained from",)
    names = sorted(path.name for path in folder.iterdir())
    if single := [name for name in names if name.endswith(".safetensors")]:
        return (f"{folder} has no model_index.json; to use a single file, give its path: {folder / single[0]}",)
    return (f"{folder} is no diffusers model: it has no model_index.json, it has {few(names) or 'nothing'}",)


def open_part(folder: Path, name: str, hf_variant: str | None) -> Part:
    """The network called `name` whose config and weight files lie in `folder`; see `open_base_model` for the errors."""
    if not folder.is_dir():
        raise ModelError(f"{folder.parent} has no {folder.name} folder", hint="fetch or copy the model again")
    files = _find_any_style(folder, PARTS[name], hf_variant)
    tensors: dict[str, TensorRef] = {}
    for file in files:
        tensors.update((hub_tensor_name(name, key), ref) for key, ref in read_header(file).items())
    return Part(name, folder, read_json(folder / "config.json"), False, tensors, files)


def _find_any_style(folder: Path, stem: str, hf_variant: str | None) -> tuple[Path, ...]:
    for style in styles(hf_variant):
        if found := find_weight_files(folder, stem, style):
            return found
    looked_for = " or ".join(weight_name(stem, style) for style in styles(hf_variant))
    present = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in present if name.endswith(_PICKLES)]:
        raise ModelError(
            f"{folder} has its weights as {few(pickles)}, a pickle, which can run code when read",
            hint="convert the model to safetensors",
        )
    raise ModelError(f"{folder} has no {looked_for}, it has {few(present) or 'nothing'}")


def _open_vae(vae_model: str, hf_variant: str | None) -> Part:
    path = Path(vae_model).expanduser()
    if not path.is_dir() and is_hub_name(vae_model):
        path = fetch_model(vae_model, descriptions=("config.json",), weights={".": PARTS["vae"]}, hf_variant=hf_variant)
    if not path.is_dir():
        raise ModelError(
            f"vae_model is {vae_model}, it must be a folder with config.json and weights, or a Hub name",
            hint="set `vae_model` to such a folder",
        )
    return open_part(path, "vae", hf_variant)


_LEGACY_VAE_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def hub_tensor_name(part: str, name: str) -> str:
    """The name a tensor has in the Hub's SDXL repository, from any that diffusers or transformers ever gave it.

    transformers 5.6 calls the modules of CLIPTextModel without `text_model.`; diffusers before 0.17 named the VAE's
    attention differently.
    """
    if part.startswith("text_encoder"):
        return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
    if part == "vae" and ".attentions." in name:
        for old, new in _LEGACY_VAE_ATTENTION.items():
            name = name.replace(old, new)
    return name


# ---- a single file


def _open_single_file(path: Path, config_dir: Path | None) -> BaseModel:
    if path.suffix != ".safetensors":
        reason = " and may be a pickle, which can run code when read" if path.suffix in _PICKLES else ""
        raise ModelError(
            f"{path} is not a .safetensors file{reason}",
            hint="convert it to safetensors",
        )
    tensors = read_header(path)
    if reason := _why_not_original_sdxl(tensors):
        raise ModelError(f"{path} {reason}")
    if config_dir is None:
        config_dir = SDXL_BASE
    scheduler_config = read_json(config_dir / "scheduler" / "scheduler_config.json")
    # Empty tensors of these names are how a single file says what it was trained for; ComfyUI reads the same.
    if "v_pred" in tensors:
        scheduler_config["prediction_type"] = "v_prediction"
    if "ztsnr" in tensors:
        scheduler_config["rescale_betas_zero_snr"] = True
        scheduler_config["timestep_spacing"] = "trailing"
    return BaseModel(
        parts={name: _original_part(name, path, tensors, config_dir) for name in PARTS},
        scheduler_config=scheduler_config,
        force_zeros_for_empty_prompt=bool(
            read_json(config_dir / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
        tokenizer_root=config_dir,
        folder=None,
    )


def _original_part(name: str, path: Path, tensors: Mapping[str, TensorRef], config_dir: Path) -> Part:
    prefix = PREFIXES[name]
    own = {key.removeprefix(prefix): ref for key, ref in tensors.items() if key.startswith(prefix)}
    return Part(name, path, read_json(config_dir / name / "config.json"), True, own, (path,))


def _why_not_original_sdxl(tensors: Mapping[str, TensorRef]) -> str:
    """What a safetensors file is, as the end of "FILE is ..."; empty where it is an SDXL base model."""
    names = list(tensors)

    def has(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if any("lora" in name for name in names):
        return "is a LoRA, not a base model; give the base model it belongs to"
    if has("cond_stage_model."):
        return "is a Stable Diffusion 1 or 2 model, not SDXL"
    if has("conditioner.embedders.0.model."):
        return "is the SDXL refiner, give the SDXL base model"
    if has("model.diffusion_model.double_blocks.", "model.diffusion_model.joint_blocks.", "double_blocks."):
        return "is a transformer model (Flux or Stable Diffusion 3), not SDXL"
    if has("down_blocks.", "unet.", "text_model.", "encoder."):
        return "holds one network in diffusers names, not a whole model; give the model's folder"
    absent = [f"{part} ({prefix}*)" for part, prefix in PREFIXES.items() if not has(prefix)]
    if len(absent) == len(PREFIXES):
        return f"is no SDXL model; it holds {few(names) or 'no tensor'}"
    return f"holds no {', no '.join(absent)}; it must hold a whole SDXL model" if absent else ""


# ---- both


def check_is_sdxl(base: BaseModel) -> None:
    """Check that the four networks are SDXL's and fit each other, by their configs and headers.

    Raises:
        ModelError: they do not, with the reason.
    """
    problems = [
        Problem(reason, where=str(base.parts[name].where))
        for name, reason in (
            ("unet", _why_not_sdxl_unet(base)),
            ("vae", _why_not_sdxl_vae(base.parts["vae"])),
            ("text_encoder", _why_not_float(base.parts["text_encoder"])),
            ("text_encoder_2", _why_not_float(base.parts["text_encoder_2"])),
        )
        if reason
    ]
    if problems:
        raise ModelError.from_problems(problems)


def _why_not_sdxl_unet(base: BaseModel) -> str:
    unet = base.parts["unet"]
    config = unet.config
    name = "input_blocks.0.0.weight" if unet.is_original else "conv_in.weight"
    channels = unet.tensors[name].shape[1] if name in unet.tensors else config.get("in_channels")
    if channels == 9:
        return "the UNet takes 9 channels: it is an inpainting model, give the SDXL base model"
    if channels != 4:
        return f"the UNet takes {channels} channels, SDXL's takes 4"
    if config.get("addition_embed_type") != "text_time":
        return "the UNet takes no picture size: it is a Stable Diffusion 1 or 2 model, not SDXL"
    widths = [_width(base.parts[text], "hidden_size") for text in ("text_encoder", "text_encoder_2")]
    if config.get("cross_attention_dim") != sum(widths):
        return (
            f"the UNet reads text of width {config.get('cross_attention_dim')},"
            f" the text encoders give {widths[0]} + {widths[1]}"
        )
    pooled = _width(base.parts["text_encoder_2"], "projection_dim")
    time_width = _width(unet, "addition_time_embed_dim")
    projected = config.get("projection_class_embeddings_input_dim")
    if projected == 5 * time_width + pooled:
        return "the UNet takes five picture numbers: it is the SDXL refiner, give the SDXL base model"
    if projected != 6 * time_width + pooled:
        return f"the UNet takes {projected} size and text numbers, SDXL's takes 6 x {time_width} + {pooled}"
    return _why_not_float(unet)


def _width(part: Part, key: str) -> int:
    width = part.config.get(key)
    if not isinstance(width, int):
        raise ModelError(
            f"the config of {part.name} says {key} is {width!r}, it must be an integer", where=str(part.where)
        )
    return width


def _why_not_sdxl_vae(vae: Part) -> str:
    channels = vae.config.get("latent_channels")
    return f"the VAE makes {channels} channels, SDXL's makes 4" if channels != 4 else _why_not_float(vae)


def _why_not_float(part: Part) -> str:
    others = {
        name: ref.dtype
        for name, ref in part.tensors.items()
        if ref.dtype not in FLOAT_DTYPES and not name.endswith("position_ids")
    }
    if not others:
        return ""
    dtypes = ", ".join(sorted(set(others.values())))
    verb = "is" if len(others) == 1 else "are"
    return f"{count(others)} {verb} {dtypes}, weights must be F32, F16 or BF16: {few(others)}"


def count(names: Collection[str]) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def few(names: Iterable[str]) -> str:
    """Up to three names and the number of the rest."""
    listed = list(names)
    rest = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + rest
