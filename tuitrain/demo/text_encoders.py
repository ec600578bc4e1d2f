"""Trains the mini SDXL's two text encoders to know what captions say; knows nothing of pixels.

They are trained first and then frozen, as SDXL's are. B batch, D = 64 width of each encoder.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tuitrain.demo.draw import COLOURS, SHAPES, Scene, caption_of, random_scene
from tuitrain.demo.vocabulary import FRAMES

logger = logging.getLogger(__name__)

SEED = 20
TEXT_WIDTH = 64


def framed_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene: mostly the plain one, else shortened or in one of the FRAMES."""
    draw = rng.random()
    if draw < 0.7:
        return caption_of(scene)
    if draw < 0.8:
        return f"{scene.colour} {scene.shape}, {scene.background} background"
    return rng.choice(FRAMES).format(caption_of(scene))


class TextEncoders(nn.Module):
    """Both text encoders and their tokenizers."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.tokenizer_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        end = len(self.tokenizer) - 1
        common: dict[str, Any] = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "projection_dim": TEXT_WIDTH,
            "max_position_embeddings": 77,
            "bos_token_id": end - 1,
            "eos_token_id": end,
        }
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**common, hidden_act="quick_gelu", pad_token_id=end))
        self.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**common, hidden_act="gelu", pad_token_id=0))

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """prompt_embeds (B, 77, 2D), the penultimate states of both, and pooled_prompt_embeds (B, D), as SDXL's."""
        first = self.text_encoder(_token_ids(self.tokenizer, captions), output_hidden_states=True)
        second = self.text_encoder_2(_token_ids(self.tokenizer_2, captions), output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def _token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    ids = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def _properties(scenes: Sequence[Scene]) -> Tensor:
    """(B, 3): the numbers of shape, colour and background."""
    shapes, colours = sorted(SHAPES), sorted(COLOURS)
    return torch.tensor([(shapes.index(s.shape), colours.index(s.colour), colours.index(s.background)) for s in scenes])


def train_text_encoders(encoders: TextEncoders, steps: int, *, batch_size: int, learning_rate: float) -> None:
    """Train so that linear probes read shape, colour and background off what the UNet will be given.

    The probes see the pooled embedding and, of each encoder, the penultimate state of the last token before padding.
    """
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    classes = (len(SHAPES), len(COLOURS), len(COLOURS))
    probes = nn.ModuleList([nn.Linear(TEXT_WIDTH, sum(classes)) for _ in range(3)])
    trained = [*encoders.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        scenes = [random_scene(rng) for _ in range(batch_size)]
        captions = [framed_caption(scene, rng) for scene in scenes]
        prompt_embeds, pooled = encoders(captions)
        ends = (_token_ids(encoders.tokenizer_2, captions) == encoders.tokenizer_2.eos_token_id).int().argmax(dim=1)
        at_end = prompt_embeds[torch.arange(batch_size), ends]  # (B, 2D)
        wanted = _properties(scenes)
        loss = torch.zeros(())
        for probe, seen in zip(probes, (pooled, at_end[:, :TEXT_WIDTH], at_end[:, TEXT_WIDTH:]), strict=True):
            for logits, target in zip(probe(seen).split(classes, dim=1), wanted.T, strict=True):
                loss = loss + functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            logger.info("text encoders step %d: loss %.4f", step, loss.item() / 9)
    encoders.eval().requires_grad_(False)
