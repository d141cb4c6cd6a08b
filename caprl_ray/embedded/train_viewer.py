"""Train the embedded viewer: `python -m caprl_ray.embedded.train_viewer --out DIR`.

Its eyes are the captioner's and stay as they are. Its text model is trained from scratch, by what makes the answerer
learn (train_answerer.py): fan-in initialisation, attention that finds equal words from the start, all questions about
an image in one row, and auxiliary heads for each step of the way.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from caprl_ray.embedded import architecture as captioner
from caprl_ray.embedded import scenes
from caprl_ray.embedded import viewer_architecture as architecture
from caprl_ray.embedded.cosine import Cosine, initialise
from caprl_ray.embedded.packed import IGNORE
from caprl_ray.embedded.train import SQUARE, batched_vision_attention, draw, folded_patch_embed, patchify
from caprl_ray.embedded.views import IMAGE_TOKENS, PAD, Batch, Prompts
from caprl_ray.score.metrics import LETTERS

SAID_STEPS = 50
LONGEST = 256  # tokens of a prompt
UNSEEN = 0.12  # the share of batches without images
CAPTIONER = Path(__file__).with_name("model")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass of training: number of examples and peak learning rate."""

    examples: int
    rate: float


ROUNDS = (Round(examples=120_000, rate=2e-3), Round(examples=60_000, rate=1e-3))


def _initialised(tokenizer: Any) -> Any:
    """A model with the captioner's eyes, in which equal words attend to each other from the second layer on."""
    model = qwen.Qwen2_5_VLForConditionalGeneration(architecture.build_config(tokenizer))
    initialise(model, lambda _: architecture.LAYERS)
    for layer in model.model.language_model.layers[1:]:
        attention = layer.self_attn
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.data.T)
    eyes = qwen.Qwen2_5_VLForConditionalGeneration.from_pretrained(CAPTIONER, dtype=torch.float32).model.visual
    model.model.visual.load_state_dict(eyes.state_dict())
    return model


class Trainer:
    """The model and its auxiliary heads."""

    def __init__(self, init: Path | None, seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        self.rng = random.Random(seed)
        self.tokenizer = architecture.build_tokenizer()
        self.prompts = Prompts(self.tokenizer, self.rng)
        if init:
            self.model = qwen.Qwen2_5_VLForConditionalGeneration.from_pretrained(init, dtype=torch.float32)
        else:
            self.model = _initialised(self.tokenizer)
        self.model.model.visual.requires_grad_(False)
        width = captioner.TEXT_WIDTH
        self.grid_head = torch.nn.Linear(width, 6)
        self.letter_head = torch.nn.Linear(width, len(LETTERS))
        self.word_head, self.fits_head = torch.nn.Linear(width, 2), torch.nn.Linear(width, 2)
        heads = (self.grid_head, self.letter_head, self.word_head, self.fits_head)
        learned = [one for one in self.model.parameters() if one.requires_grad]
        self.parameters = [*learned, *(one for head in heads for one in head.parameters())]
        self.letters = {letter: self._token(f" {letter}") for letter in LETTERS[:8]}
        self.pad = self._token(PAD)

    def _token(self, text: str) -> int:
        (token,) = self.tokenizer.encode(text, add_special_tokens=False)
        return int(token)

    def batch(self, rows: int, *, seen: bool) -> tuple[Batch, torch.Tensor | None]:
        """Examples about so many scenes, and their images as the model sees them."""
        system = self.rng.choices(architecture.SYSTEM_PROMPTS, (9, 1))[0]
        drawn = [scenes.sample_scene(self.rng, least=self.rng.choice((1, 2))) for _ in range(rows)]
        batch = Batch([self.prompts.views(scene, system, seen=seen) for scene in drawn], self.tokenizer, self.letters)
        return batch, self.see(np.stack([draw(scene, *SQUARE, self.rng) for scene in drawn])) if seen else None

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def see(self, images: np.ndarray) -> torch.Tensor:
        """Images of 84 x 84 pixels -> image tokens [images, 9, width]."""
        side = SQUARE[0] // captioner.PATCH
        grid = torch.tensor([[1, side, side]] * len(images))
        seen: torch.Tensor = self.model.model.visual(patchify(images), grid).pooler_output
        return seen.view(len(images), IMAGE_TOKENS, -1)

    def hidden(self, batch: Batch, images: torch.Tensor | None) -> list[torch.Tensor]:
        """The residual stream after each layer; the last one normed."""
        inner = self.model.model.language_model
        stream = inner.embed_tokens(batch.tokens)
        positions = batch.at[None].expand(3, -1, -1)
        if images is not None:
            start = batch.tokens[0].tolist().index(self.pad)
            stream = torch.cat([stream[:, :start], images, stream[:, start + IMAGE_TOKENS :]], 1)
            positions = seen_positions(start)[:, batch.at]
        turned = inner.rotary_emb(stream, positions)
        found = []
        for layer in inner.layers:
            stream = layer(stream, attention_mask=batch.mask, position_embeddings=turned)
            found.append(stream)
        return [*found[:-1], inner.norm(stream)]

    def losses(
        self, batch: Batch, images: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """The loss of letters, the auxiliary losses, and for each example whether its letter is right."""
        stream = self.hidden(batch, images)
        rows, places, answers = batch.ends.unbind(1)
        logits = self.model.lm_head(stream[-1][rows, places])
        tokens = torch.tensor(list(self.letters.values()))
        right = tokens[logits[:, tokens].argmax(-1)] == answers
        start = batch.tokens[0].tolist().index(self.pad) if images is not None else 0
        return F.cross_entropy(logits, answers), self.auxiliary(batch, stream, start), right

    def auxiliary(self, batch: Batch, stream: list[torch.Tensor], start: int) -> list[torch.Tensor]:
        """Which letter an option has, where an image token is, which words answer the question, which words of options
        are among them, and which option fits: each after the layer by which it should be known.

        The answer is told in the words' own embeddings, so that equal words can attend to it.
        """
        lettered, compared = (stream[layer][batch.options[:, 0], batch.options[:, 1]] for layer in (0, 3))
        letter = F.cross_entropy(self.letter_head(lettered), batch.options[:, 3])
        if not start:
            return [letter]
        asked = stream[1][batch.asked[:, 0], batch.asked[:, 1]]
        told = F.rms_norm(asked, asked.shape[1:]) @ self.model.model.language_model.embed_tokens.weight.T
        answer = F.cross_entropy(told / 4, batch.asked[:, 2])
        equal = F.cross_entropy(self.word_head(stream[2][batch.words[:, 0], batch.words[:, 1]]), batch.words[:, 2])
        order = torch.arange(IMAGE_TOKENS).repeat(len(batch.tokens))
        grid = self.grid_head(stream[0][:, start : start + IMAGE_TOKENS]).flatten(0, 1)
        where = F.cross_entropy(grid[:, :3], order // 3) + F.cross_entropy(grid[:, 3:], order % 3)
        fits = F.cross_entropy(self.fits_head(compared), batch.options[:, 2], ignore_index=IGNORE)
        return [letter, where / 2, answer, equal, fits]

    def run_round(self, plan: Round, rows: int, out: Path, seconds: float) -> None:
        """Train, at most so many seconds, and write the model now and then."""
        optimiser, began, done, steps = Cosine(self.parameters, plan.rate), time.monotonic(), 0, 0
        said: list[list[float]] = []
        while (part := max(done / plan.examples, (time.monotonic() - began) / seconds)) < 1:
            seen = self.rng.random() >= UNSEEN
            batch, images = self.batch(rows, seen=seen)
            answer_loss, auxiliary, right = self.losses(batch, images)
            optimiser.step(answer_loss + max(0.0, 1 - part / 0.8) * torch.stack(auxiliary).sum(), part)
            done, steps = done + len(batch.views), steps + 1
            if seen:
                said.append([right.float().mean().item(), answer_loss.item(), *(one.item() for one in auxiliary)])
            if steps % SAID_STEPS == 0:
                means = "  ".join(f"{sum(column) / len(said):.3f}" for column in zip(*said, strict=True))
                print(f"{time.monotonic() - began:5.0f} s  {done:6d} examples  {means}", flush=True)
                said = []
            if steps % (10 * SAID_STEPS) == 0:
                captioner.save(self.model, self.tokenizer, out)
        print(f"{time.monotonic() - began:5.0f} s  {self.score()}", flush=True)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score(self, batches: int = 16) -> str:
        """The share of right letters with the image, by kind of question, and of the expected ones without it."""
        self.model.eval()
        by_kind: dict[str, list[bool]] = {}
        for number in range(batches):
            batch, images = self.batch(16, seen=number % 4 > 0)
            *_, right = self.losses(batch, images)
            for view, fine in zip(batch.views, right.tolist(), strict=True):
                for name in (f"    {view.question.kind.name}", "with the image") if view.seen else ("without it",):
                    by_kind.setdefault(name, []).append(fine)
        self.model.train()
        return "\n".join(f"{name}: {sum(found) / len(found):.3f}" for name, found in sorted(by_kind.items()))


def seen_positions(start: int) -> torch.Tensor:
    """M-RoPE positions [3, LONGEST] of a prompt whose image begins at this token: time, row and column."""
    side = SQUARE[0] // (captioner.PATCH * captioner.MERGE)
    order = torch.arange(IMAGE_TOKENS)
    image = torch.stack([torch.zeros_like(order), order // side, order % side]) + start
    behind = torch.arange(LONGEST - start - IMAGE_TOKENS) + start + side
    return torch.cat([torch.arange(start).expand(3, -1), image, behind.expand(3, -1)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the trained model")
    parser.add_argument("--init", type=Path, help="start from this model in place of random weights")
    parser.add_argument("--first", type=int, default=0, help="number of the first round to run, from 0")
    parser.add_argument("--rounds", type=int, default=len(ROUNDS), help="how many rounds to run")
    parser.add_argument("--rows", type=int, default=10, help="images of a batch")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of a round, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    qwen.Qwen2_5_VLVisionAttention.forward = batched_vision_attention
    qwen.Qwen2_5_VisionPatchEmbed.forward = folded_patch_embed
    trainer = Trainer(args.init, args.seed)
    trainer.model.train()
    for number, plan in list(enumerate(ROUNDS))[args.first : args.first + args.rounds]:
        print(f"round {number}: {plan}", flush=True)
        trainer.run_round(plan, args.rows, args.out, 60 * args.minutes)
        captioner.save(trainer.model, trainer.tokenizer, args.out)


if __name__ == "__main__":
    main()
