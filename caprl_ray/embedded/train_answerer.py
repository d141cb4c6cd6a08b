"""Train the embedded answerer from scratch: `python -m caprl_ray.embedded.train_answerer --out DIR`.

It takes a quarter of an hour on one core, for these reasons:

* A prompt has only about forty tokens (answerer_architecture.py), and all questions about a caption share a row
  (packed.py).
* The weights are initialised by fan-in, as for the captioner, and attention finds and copies equal words from the
  start.
* An auxiliary head trains each step of the answer: what each thing of the caption is, which letter an option has, what
  the question is about, and which option fits. The heads are not saved. Without the head for letters, only three of
  four answers become right.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from caprl_ray.embedded import answerer_architecture as architecture
from caprl_ray.embedded import kinds
from caprl_ray.embedded.cosine import Cosine, initialise
from caprl_ray.embedded.examples import CAPTIONS, Make, Prompts, complete, of_another_scene
from caprl_ray.embedded.packed import ATTRIBUTES, IGNORE, Batch, Words
from caprl_ray.score.metrics import LETTERS

SAID_STEPS = 50  # steps per printed line, which has the means of the share of right letters and of the losses


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass of training: the number of examples and the peak learning rate."""

    examples: int
    rate: float


ROUNDS = (Round(examples=150_000, rate=2e-3), Round(examples=100_000, rate=1e-3))


def _initialised(tokenizer: Any) -> Any:
    """A new model. From its second layer on, equal words attend to each other before any training.

    This is mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828).
    """
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(architecture.build_config(tokenizer))
    initialise(model, lambda _: architecture.LAYERS)
    for layer in model.model.layers[1:]:
        attention = layer.self_attn
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.data.T)
    return model


class Trainer:
    """The model and its auxiliary heads."""

    def __init__(self, init: Path | None, seed: int) -> None:
        from transformers import LlamaForCausalLM

        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.tokenizer = architecture.build_tokenizer()
        self.words = Words(self.tokenizer)
        self.prompts = Prompts(self.tokenizer, self.rng)
        if init:
            self.model = LlamaForCausalLM.from_pretrained(init, dtype=torch.float32)
        else:
            self.model = _initialised(self.tokenizer)
        classes = [1 + len(kinds.VALUES[name]) for name in ATTRIBUTES]
        width = architecture.WIDTH
        self.thing_heads = torch.nn.ModuleList([torch.nn.Linear(width, count) for count in classes[:3]])
        self.asked_heads = torch.nn.ModuleList([torch.nn.Linear(width, count) for count in classes])
        self.letter_head, self.fits_head = torch.nn.Linear(width, len(LETTERS)), torch.nn.Linear(width, 2)
        heads = (self.thing_heads, self.asked_heads, self.letter_head, self.fits_head)
        self.parameters = [*self.model.parameters(), *(one for head in heads for one in head.parameters())]

    def batches(self, size: int, make: Make | None = None, pool: int = 16) -> Iterator[Batch]:
        """Endless batches of `size` captions with their questions; those of a batch have similar lengths.

        `make` makes the captions' facts (if None, at random). `pool` batches are made and sorted at a time.
        """
        while True:
            groups = [self.prompts.examples(make) for _ in range(size * pool)]
            tokens = [
                self.tokenizer([one.text for one in group], add_special_tokens=False)["input_ids"] for group in groups
            ]
            order = sorted(range(len(groups)), key=lambda number: sum(map(len, tokens[number])))
            parts = [order[start : start + size] for start in range(0, len(order), size)]
            self.rng.shuffle(parts)
            for part in parts:
                yield Batch([(groups[one], tokens[one]) for one in part], self.words)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text."""
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found

    def hidden(self, batch: Batch) -> list[torch.Tensor]:
        """The residual stream after each layer. The last one is normalised."""
        inner = self.model.model
        stream = inner.embed_tokens(batch.tokens)
        turned = inner.rotary_emb(stream, batch.positions)
        found = []
        for layer in inner.layers:
            stream = layer(stream, attention_mask=batch.mask, position_embeddings=turned)
            found.append(stream)
        return [*found[:-1], inner.norm(stream)]

    def losses(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """The loss of the answers, the auxiliary losses, and for each example whether its letter is right."""
        stream = self.hidden(batch)
        rows, places, answers = batch.ends.unbind(1)
        logits = self.model.lm_head(stream[-1][rows, places])
        rest = torch.cat([self.model.lm_head(stream[-1][rows, places + more]) for more in (1, 2)])
        wanted = torch.tensor([self.words.stop] * len(rows) + [self.words.end] * len(rows))
        answer_loss = F.cross_entropy(logits, answers) + 0.1 * F.cross_entropy(rest, wanted)
        right = logits[:, list(self.words.letters.values())].argmax(-1)
        letters = torch.tensor([LETTERS.index(one.letter) for one in batch.examples])
        return answer_loss, self.auxiliary(batch, stream), right == letters

    def auxiliary(self, batch: Batch, stream: list[torch.Tensor]) -> list[torch.Tensor]:
        """The losses of the auxiliary heads, each at the layer after which the model should know the answer: what a
        thing of the caption is, which letter an option has, which thing the question means, and which option fits."""
        things = stream[0][batch.things[:, 0], batch.things[:, 1]]
        lettered, compared = (stream[layer][batch.options[:, 0], batch.options[:, 1]] for layer in (0, 3))
        asked = stream[1][batch.asked[:, 0], batch.asked[:, 1]]
        known = [F.cross_entropy(head(things), batch.things[:, 2 + n]) for n, head in enumerate(self.thing_heads)]
        meant = [
            F.cross_entropy(head(asked), labels, ignore_index=IGNORE)
            for head, labels in zip(self.asked_heads, batch.asked[:, 2:].unbind(1), strict=True)
            if (labels != IGNORE).any()
        ]
        return [
            torch.stack(known).mean(),
            F.cross_entropy(self.letter_head(lettered), batch.options[:, 3]),
            torch.stack(meant).mean(),
            F.cross_entropy(self.fits_head(compared), batch.options[:, 2]),
        ]

    def run_round(self, plan: Round, captions: int) -> None:
        optimiser, began, done = Cosine(self.parameters, plan.rate), time.monotonic(), 0
        seen: list[list[float]] = []
        for batch in self.batches(captions):
            part = done / plan.examples
            if part >= 1:
                break
            answer_loss, auxiliary, right = self.losses(batch)
            optimiser.step(answer_loss + max(0.0, 1 - part / 0.8) * torch.stack(auxiliary).sum(), part)
            done += len(batch.examples)
            seen.append([right.float().mean().item(), answer_loss.item(), *(one.item() for one in auxiliary)])
            if len(seen) == SAID_STEPS:
                means = "  ".join(f"{sum(column) / len(seen):.3f}" for column in zip(*seen, strict=True))
                print(f"{time.monotonic() - began:5.0f} s  {done:6d} examples  {means}", flush=True)
                seen = []
        print(f"{time.monotonic() - began:5.0f} s  {self.score()}", flush=True)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score(self, examples: int = 1024) -> str:
        """The share of right letters for each kind of caption. For complete captions, and for those of another scene,
        also by kind of question."""
        self.model.eval()
        said, by_kind = [], dict[str, list[bool]]()
        for make, _ in CAPTIONS:
            right = []
            for batch, _ in zip(self.batches(32, make, pool=1), range(examples // 128), strict=False):
                *_, found = self.losses(batch)
                right.append(found)
                if make in (complete, of_another_scene):
                    for one, fine in zip(batch.examples, found.tolist(), strict=True):
                        by_kind.setdefault(f"{make.__name__}: {one.question.kind.name}", []).append(fine)
            said.append(f"{make.__name__} {torch.cat(right).float().mean().item():.3f}")
        self.model.train()
        lines = [f"    {name}: {sum(found) / len(found):.3f}" for name, found in sorted(by_kind.items())]
        return "\n".join(["  ".join(said), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the trained model")
    parser.add_argument("--init", type=Path, help="start from this model in place of random weights")
    parser.add_argument("--first", type=int, default=0, help="number of the first round to run, from 0")
    parser.add_argument("--rounds", type=int, default=len(ROUNDS), help="how many rounds to run")
    parser.add_argument("--captions", type=int, default=16, help="captions in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args.init, args.seed)
    trainer.model.train()
    for number, plan in list(enumerate(ROUNDS))[args.first : args.first + args.rounds]:
        print(f"round {number}: {plan}", flush=True)
        trainer.run_round(plan, args.captions)
        architecture.save(trainer.model, trainer.tokenizer, args.out)


if __name__ == "__main__":
    main()
