"""Train the embedded captioner from scratch on rendered scenes: `python -m caprl_ray.embedded.train --out DIR`.

The parts of the training, and the reason for each:

* The weights are initialised by fan-in. With transformers' fixed deviation of 0.02, a model of this width learns
  nothing.
* Captions name the position first, so that the model can look up the other attributes at a known place.
* Auxiliary heads predict kind, colour, size and background from each image token, and the grid position from the first
  text layer. With the loss of captions alone, the vision part learns slowly. The heads are not saved.
* Scenes have 1, then 2, then 3 things on square images. Other aspect ratios follow in later rounds.
* There are several rounds, each with a learning rate that falls as a cosine.
"""

import argparse
import io
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from caprl_ray.embedded import architecture, scenes
from caprl_ray.embedded.cosine import Cosine, initialise

TOKEN = architecture.PATCH * architecture.MERGE  # pixels along an image token's side
SQUARE, WIDE, TALL = (84, 84), (112, 84), (84, 112)
KINDS = scenes.SHAPES + scenes.DIGITS
AUX_CLASSES = (1 + len(KINDS), 1 + len(scenes.COLOURS), 1 + len(scenes.SIZES), len(scenes.BACKGROUNDS))
IGNORE = -100
MOST_CAPTION_TOKENS = 60


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass of training.

    Attributes:
        images: the number of images.
        rate: the peak learning rate.
        curriculum: whether the first scenes have one thing, and the next ones two.
        digits: whether some scenes have digits.
        sizes: the image sizes in pixels, drawn at random; a size that is listed twice is drawn twice as often.
    """

    images: int
    rate: float
    curriculum: bool = False
    digits: bool = False
    sizes: tuple[tuple[int, int], ...] = (SQUARE, SQUARE, WIDE, TALL)


ROUNDS = (
    Round(images=70_000, rate=2e-3, curriculum=True, sizes=(SQUARE,)),
    Round(images=60_000, rate=1.2e-3),
    Round(images=60_000, rate=1e-3),
    Round(images=120_000, rate=1.2e-3, sizes=(SQUARE, WIDE, TALL)),
    Round(images=120_000, rate=8e-4, sizes=(SQUARE, WIDE, TALL)),
)


def batched_vision_attention(
    self: Any, x: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any = None, **_: Any
) -> torch.Tensor:
    """Qwen2_5_VLVisionAttention.forward for segments of equal length, in one call. (transformers loops over them.)"""
    count = x.shape[0]
    q, k, v = self.qkv(x).reshape(count, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    length = int(cu_seqlens[1] - cu_seqlens[0])
    q, k, v = (t.reshape(-1, length, self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, -1)
    return self.proj(out)


def folded_patch_embed(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Qwen2_5_VisionPatchEmbed.forward for a still image: both frames are the same, so their weights are added."""
    return F.linear(x, self.proj.weight.sum(2).reshape(self.embed_dim, -1))


def _depth(name: str) -> int:
    return architecture.VISION_LAYERS if "visual" in name else architecture.TEXT_LAYERS


def patchify(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> normalised patches [B * H/14 * W/14, 588] in Qwen's order, one temporal frame."""
    batch, height, width, _ = images.shape
    mean, std = (np.array(architecture.PROCESSOR[key], np.float32) for key in ("image_mean", "image_std"))
    rows, columns, patch = height // TOKEN, width // TOKEN, architecture.PATCH
    x = (images.astype(np.float32) / 255 - mean) / std
    x = x.reshape(batch, rows, 2, patch, columns, 2, patch, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    return torch.from_numpy(np.ascontiguousarray(x).reshape(batch * rows * columns * 4, -1))


def token_labels(scene: scenes.Scene, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Kind, colour, size and background for each image token. IGNORE where a token covers only the edge of a thing."""
    cell_width, cell_height = width / 3, height / 3
    labels = []
    for y in range(TOKEN // 2, height, TOKEN):
        for x in range(TOKEN // 2, width, TOKEN):

            def distance(thing: scenes.Thing, x: int = x, y: int = y) -> float:
                return max(abs(x - (thing.column + 0.5) * cell_width), abs(y - (thing.row + 0.5) * cell_height))

            nearest = min(scene.things, key=distance)
            radius = scenes.SIZES[nearest.size] * min(cell_width, cell_height)
            if distance(nearest) < max(0.6 * radius, 11):
                label = (
                    1 + KINDS.index(nearest.kind),
                    1 + list(scenes.COLOURS).index(nearest.colour),
                    1 + list(scenes.SIZES).index(nearest.size),
                )
            elif distance(nearest) < radius + 18:
                label = (IGNORE, IGNORE, IGNORE)
            else:
                label = (0, 0, 0)
            labels.append((*label, list(scenes.BACKGROUNDS).index(scene.background)))
    return labels


def draw(scene: scenes.Scene, width: int, height: int, rng: random.Random) -> np.ndarray:
    """A scene as users may store it: drawn at various scales, sometimes as JPEG, sometimes with noise."""
    image = scenes.render(scene, width, height, rng=rng, supersample=rng.choice((1, 2, 3, 5)))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(70, 95))
        image = Image.open(buffer)
    pixels = np.asarray(image)
    if rng.random() < 0.3:
        noise = np.random.randint(-8, 9, pixels.shape)
        pixels = np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return pixels


class Trainer:
    """The model, its auxiliary heads, and the cached positions for each image size and prompt."""

    def __init__(self, init: Path | None, seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        self.rng = random.Random(seed)
        self.tokenizer = architecture.build_tokenizer()
        if init:
            self.model = qwen.Qwen2_5_VLForConditionalGeneration.from_pretrained(init, dtype=torch.float32)
        else:
            self.model = qwen.Qwen2_5_VLForConditionalGeneration(architecture.build_config(self.tokenizer))
            initialise(self.model, _depth)
        width = architecture.TEXT_WIDTH
        self.heads = torch.nn.ModuleList([torch.nn.Linear(width, classes) for classes in AUX_CLASSES])
        self.grid_head = torch.nn.Linear(width, 6)
        self.parameters = [
            *self.model.parameters(),
            *self.heads.parameters(),
            *self.grid_head.parameters(),
        ]
        self.first_layer: torch.Tensor | None = None
        self.model.model.language_model.layers[0].register_forward_hook(self._keep_first_layer)
        self.prompts: dict[Any, Any] = {}
        self.grids: dict[Any, Any] = {}

    def _keep_first_layer(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.first_layer = output[0] if isinstance(output, tuple) else output

    def prompt(self, size: tuple[int, int], system: str | None, user: str) -> tuple[list[int], Any, int]:
        """The prompt's token ids, the M-RoPE positions [3, ids + MOST_CAPTION_TOKENS], and the place of the first image
        token."""
        key = (size, system, user)
        if key not in self.prompts:
            count = (size[0] // TOKEN) * (size[1] // TOKEN)
            text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
            text += "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
            text += f"{user}<|im_end|>\n<|im_start|>assistant\n"
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            full = torch.tensor([ids + [0] * MOST_CAPTION_TOKENS])
            image_token = self.model.config.image_token_id
            positions, _ = self.model.model.get_rope_index(
                full,
                mm_token_type_ids=(full == image_token).int(),
                image_grid_thw=self.patch_grid(size, 1),
                attention_mask=torch.ones_like(full),
            )
            self.prompts[key] = (ids, positions[:, 0], ids.index(image_token))
        found: tuple[list[int], Any, int] = self.prompts[key]
        return found

    @staticmethod
    def patch_grid(size: tuple[int, int], batch: int) -> torch.Tensor:
        return torch.tensor([[1, size[1] // architecture.PATCH, size[0] // architecture.PATCH]] * batch)

    def see(self, patches: torch.Tensor, size: tuple[int, int], batch: int) -> torch.Tensor:
        """The image tokens [batch * tokens, width] of the patches."""
        key = (size, batch)
        if key not in self.grids:
            grid = self.patch_grid(size, batch)
            index, segments = get_vision_window_index(
                grid, spatial_merge_size=architecture.MERGE, window_size=112, patch_size=architecture.PATCH
            )
            positions = get_vision_position_ids(grid, architecture.MERGE)
            self.grids[key] = (
                grid,
                {"window_index": index, "cu_window_seqlens": segments, "position_ids": positions},
            )
        grid, extra = self.grids[key]
        return self.model.model.visual(patches, grid, **extra).pooler_output

    def losses(
        self, batch: list[scenes.Scene], size: tuple[int, int], system: str | None, user: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Caption loss, mean auxiliary loss, and for each scene whether every caption token is right."""
        images = np.stack([draw(scene, *size, self.rng) for scene in batch])
        end = self.tokenizer.eos_token_id
        captions = [[*self.tokenizer.encode(scenes.caption(scene)), end] for scene in batch]
        ids, positions, start = self.prompt(size, system, user)
        seen = self.see(patchify(images), size, len(batch))
        longest, count = max(map(len, captions)), seen.shape[0] // len(batch)
        tokens = torch.zeros(len(batch), len(ids) + longest, dtype=torch.long)
        tokens[:, : len(ids)] = torch.tensor(ids)
        wanted = torch.full((len(batch), longest), IGNORE)
        for row, caption in enumerate(captions):
            tokens[row, len(ids) : len(ids) + len(caption)] = torch.tensor(caption)
            wanted[row, : len(caption)] = torch.tensor(caption)
        embedded = self.model.model.language_model.embed_tokens(tokens)
        image = seen.view(len(batch), count, -1)
        embedded = torch.cat([embedded[:, :start], image, embedded[:, start + count :]], 1)[:, :-1]
        hidden = self.model.model.language_model(
            inputs_embeds=embedded,
            position_ids=positions[:, None, : embedded.shape[1]].expand(3, len(batch), -1),
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, len(ids) - 1 :])
        caption_loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
        right = ((logits.argmax(-1) == wanted) | (wanted == IGNORE)).all(1)
        return caption_loss, self.auxiliary_loss(batch, size, seen, start, count), right

    def auxiliary_loss(
        self, batch: list[scenes.Scene], size: tuple[int, int], seen: torch.Tensor, start: int, count: int
    ) -> torch.Tensor:
        labels = torch.tensor([token_labels(scene, *size) for scene in batch]).reshape(-1, len(AUX_CLASSES))
        losses = [F.cross_entropy(head(seen), labels[:, n], ignore_index=IGNORE) for n, head in enumerate(self.heads)]
        assert self.first_layer is not None
        grid = self.grid_head(self.first_layer[:, start : start + count])
        order = torch.arange(count)
        columns, rows = size[0] // TOKEN, size[1] // TOKEN
        for offset, place in ((0, (order // columns + 0.5) * 3 / rows), (3, (order % columns + 0.5) * 3 / columns)):
            losses.append(
                F.cross_entropy(grid[..., offset : offset + 3].reshape(-1, 3), place.long().repeat(len(batch)))
            )
        return torch.stack(losses).sum() / 4

    def run_round(self, plan: Round, batch_size: int) -> None:
        optimiser, done = Cosine(self.parameters, plan.rate), 0
        began = said = time.monotonic()
        while done < plan.images:
            part = done / plan.images
            most = 3 if not plan.curriculum or part >= 0.35 else 1 if part < 0.15 else 2
            least = self.rng.choice((1, 1, 3)) if most == 3 else 1
            kinds = KINDS if plan.digits and self.rng.random() < 0.6 else scenes.SHAPES
            rows = 16 if most == 1 else batch_size
            batch = [scenes.sample_scene(self.rng, least=least, most=most, kinds=kinds) for _ in range(rows)]
            size = self.rng.choice(plan.sizes)
            default = self.rng.random() < 0.6
            system = architecture.SYSTEM_PROMPTS[0] if default else self.rng.choice(architecture.SYSTEM_PROMPTS)
            user = architecture.USER_PROMPTS[0] if default else self.rng.choice(architecture.USER_PROMPTS)
            caption_loss, auxiliary, _ = self.losses(batch, size, system, user)
            optimiser.step(caption_loss + max(0.0, 1 - part / 0.8) * auxiliary, part)
            done += rows
            if time.monotonic() - said > 30:
                said = time.monotonic()
                print(
                    f"{said - began:5.0f} s  {done:6d} images  loss {caption_loss.item():.4f}  {self.score(plan)}",
                    flush=True,
                )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score(self, plan: Round, rows: int = 64) -> str:
        """The share of scenes with every token right, for each image size. Teacher forcing gives the same share as
        greedy decoding."""
        self.model.eval()
        parts = []
        for size in sorted(set(plan.sizes)):
            batch = [scenes.sample_scene(self.rng) for _ in range(rows)]
            *_, right = self.losses(batch, size, architecture.SYSTEM_PROMPTS[0], architecture.USER_PROMPTS[0])
            parts.append(f"{size[0]}x{size[1]} {right.float().mean().item():.3f}")
        if plan.digits:
            batch = [scenes.sample_scene(self.rng, most=1, kinds=scenes.DIGITS) for _ in range(rows)]
            *_, right = self.losses(batch, SQUARE, architecture.SYSTEM_PROMPTS[0], architecture.USER_PROMPTS[0])
            parts.append(f"digit {right.float().mean().item():.3f}")
        self.model.train()
        return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the trained model")
    parser.add_argument("--init", type=Path, help="start from this model in place of random weights")
    parser.add_argument("--first", type=int, default=0, help="number of the first round to run, from 0")
    parser.add_argument("--rounds", type=int, default=len(ROUNDS), help="how many rounds to run")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    qwen.Qwen2_5_VLVisionAttention.forward = batched_vision_attention
    qwen.Qwen2_5_VisionPatchEmbed.forward = folded_patch_embed
    trainer = Trainer(args.init, args.seed)
    trainer.model.train()
    for number, plan in list(enumerate(ROUNDS))[args.first : args.first + args.rounds]:
        print(f"round {number}: {plan}", flush=True)
        trainer.run_round(plan, args.batch_size)
        architecture.save(trainer.model, trainer.tokenizer, args.out)


if __name__ == "__main__":
    main()
