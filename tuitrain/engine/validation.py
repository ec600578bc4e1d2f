"""The validation images of a run: prompts, settings, where the networks are meanwhile; knows no files, no events."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from PIL.Image import Image
from torch import Tensor, nn

from tuitrain.engine.diffusion import NoiseSchedule
from tuitrain.engine.ema import ExponentialMovingAverage
from tuitrain.engine.sampling import ValidationPrompt, build_sampling_scheduler, decode_latents, sample_latents
from tuitrain.engine.sdxl import SDXLModels

Embeddings = tuple[Tensor, Tensor]


def encode_validation_prompts(
    prompts: Sequence[str], negatives: Sequence[str] | None, encode: Callable[[list[str]], Embeddings]
) -> list[ValidationPrompt]:
    """The prompts as embeddings, on the CPU, once for the whole run: the text encoders are not trained.

    Args:
        negatives: one for each prompt; None stands for zeros, as in diffusers' pipeline.
        encode: captions -> (n, 77, D) and (n, P).
    """
    encoded = []
    for index, prompt in enumerate(prompts):
        positive = _on_cpu(encode([prompt]))
        negative = _on_cpu(encode([negatives[index]])) if negatives else tuple(map(torch.zeros_like, positive))
        encoded.append(ValidationPrompt(prompt, *positive, *negative))
    return encoded


def _on_cpu(embeddings: Embeddings) -> Embeddings:
    return embeddings[0].cpu(), embeddings[1].cpu()


class Validator:
    """Generates the images of all prompts from the live UNet.

    Args:
        ema: the average of the UNet's weights, sampled from when there is one.
        num_images: of each prompt.
        size_hw: in pixels.
        seed: of each prompt.
        offload: let the UNet make room on the GPU while the VAE decodes.
    """

    def __init__(
        self,
        models: SDXLModels,
        schedule: NoiseSchedule,
        prompts: Sequence[ValidationPrompt],
        *,
        ema: ExponentialMovingAverage | None,
        num_images: int,
        size_hw: tuple[int, int],
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        offload: bool,
    ) -> None:
        self.prompts = prompts
        self._models = models
        self._scheduler = build_sampling_scheduler(models.scheduler_config, schedule)
        self._ema = ema
        self._num_images = num_images
        self._size_hw = size_hw
        self._num_inference_steps = num_inference_steps
        self._guidance_scale = guidance_scale
        self._seed = seed
        self._offload = offload

    @property
    def num_images(self) -> int:
        """Over all prompts."""
        return len(self.prompts) * self._num_images

    @property
    def num_steps(self) -> int:
        """Denoising steps over all images."""
        return self.num_images * self._num_inference_steps

    def pictures(self, after_step: Callable[[], None]) -> Generator[tuple[ValidationPrompt, list[Image]]]:
        """Each prompt with its pictures.

        Args:
            after_step: called after each of the `num_steps`, all before the first picture; what it raises ends it.
        """
        unet, vae = self._models.unet, self._models.vae
        unet.eval()
        try:
            with nullcontext() if self._ema is None else self._ema.applied():
                latents = [self._sample(prompt, after_step) for prompt in self.prompts]
        finally:
            unet.train()
        device = unet.device
        with moved(unet, "cpu" if self._offload else device), moved(vae, device):
            for prompt, latents_of_prompt in zip(self.prompts, latents, strict=True):
                yield prompt, decode_latents(vae, latents_of_prompt)

    def _sample(self, prompt: ValidationPrompt, after_step: Callable[[], None]) -> list[Tensor]:
        return sample_latents(
            self._models.unet,
            self._models.vae,
            self._scheduler,
            prompt,
            num_images=self._num_images,
            size_hw=self._size_hw,
            num_inference_steps=self._num_inference_steps,
            guidance_scale=self._guidance_scale,
            seed=self._seed,
            after_step=after_step,
        )


@contextmanager
def moved(network: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Keep a network on another device for a while."""
    home = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(home)
