"""Publishes checkpoints of runs that never ran; knows nothing of exports."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tuitrain.engine.base_model import open_base_model
from tuitrain.engine.weights import hash_weights, write_safetensors
from tuitrain.runs.checkpoints import checkpoint_name, publish_checkpoint
from tuitrain.runs.run import Run

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def publish(output_dir: Path, base: str, unet: Path, *, prediction_type: str = "epsilon", **settings: Any) -> Path:
    """Put the UNet folder `unet` into a new run as its checkpoint of step 7, trained from `base`."""
    config = {"model": base, "base_output_dir": str(output_dir), "hf_variant": "fp16", **settings}
    run = Run.create(output_dir, config_yaml=json.dumps(config), config_json=json.dumps(config))
    opened = open_base_model(base, hf_variant="fp16", vae_model=None, model_config_dir=config.get("model_config_dir"))
    with publish_checkpoint(run.checkpoints_dir, epoch=2, step=7) as staged:
        (staged.path / "unet").mkdir()
        (staged.path / "unet" / "config.json").write_bytes((unet / "config.json").read_bytes())
        write_safetensors(staged.path / UNET_FILE, unet_tensors(unet.parent).items(), dtype=torch.float32)
        staged.finish(
            kind="trained_only_diffusers",
            weights="trained",
            config_hash="0",
            base_model=base,
            base_model_hash=hash_weights(opened.parts["unet"].files),
            prediction_type=prediction_type,
            save_dtype="float32",
        )
    return run.checkpoints_dir / checkpoint_name(2, 7)


def unet_tensors(model: Path) -> dict[str, Tensor]:
    """The tensors of a model folder's UNet, whatever style its file names have."""
    (path,) = (model / "unet").glob("*.safetensors")
    return load_file(path)
