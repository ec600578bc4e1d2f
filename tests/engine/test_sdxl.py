"""Loading SDXL and encoding with it, against diffusers' own pipeline."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tuitrain.engine.sdxl import SDXLModels, encode_image, encode_prompt, load_sdxl


@pytest.fixture(scope="module")
def models(tiny_sdxl: Path) -> SDXLModels:
    return load_sdxl(str(tiny_sdxl), hf_variant=None)


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)


CAPTIONS = ["a red circle on a blue ground", "", "a caption that is much longer than all of 77 tokens " * 4]


def test_encode_prompt_equals_the_pipelines(models: SDXLModels, pipeline: StableDiffusionXLPipeline) -> None:
    prompt_embeds, pooled_prompt_embeds = encode_prompt(models, CAPTIONS, device="cpu")
    with torch.no_grad():
        expected, _, expected_pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    assert prompt_embeds.shape == (3, 77, 80)
    assert pooled_prompt_embeds.shape == (3, 40)
    torch.testing.assert_close(prompt_embeds, expected)
    torch.testing.assert_close(pooled_prompt_embeds, expected_pooled)


def test_encode_image_is_a_scaled_sample_of_the_vae(models: SDXLModels, pipeline: StableDiffusionXLPipeline) -> None:
    pixel_values = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = encode_image(models.vae, pixel_values, torch.Generator().manual_seed(3))
    with torch.no_grad():
        sample = pipeline.vae.encode(pixel_values).latent_dist.sample(torch.Generator().manual_seed(3))
    assert latents.shape == (2, 4, 8, 12)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, sample * 0.13025)
