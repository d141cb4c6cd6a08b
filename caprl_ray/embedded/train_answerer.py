"""Train the embedded answerer from scratch: `python -m caprl_ray.embedded.train_answerer --out DIR`.

Every example is a prompt of the judge, made by its own code: a caption, a question about a scene, its options in some
order, and the letter that a perfect reader of the caption chooses (`questions.told`). Captions are right, wrong, of
another scene, incomplete or empty. What makes it learn in a quarter of an hour:

* a tokenizer by which a prompt has some fifty tokens (answerer_architecture.py);
* fan-in initialisation, as for the captioner;
* auxiliary heads, thrown away afterwards, for the steps of the way: what a thing of the caption is, which thing the
  question means, and which option fits.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from caprl_ray.embedded import answerer_architecture as architecture
from caprl_ray.embedded import questions, scenes
from caprl_ray.embedded.cosine import Cosine, initialise
from caprl_ray.embedded.questions import BACKGROUND, COLOR, COUNT, PLACE, SHAPE, SIZE, Facts, SceneQuestion
from caprl_ray.engines.chat import ChatFormat
from caprl_ray.score.judge import INSTRUCTION, Shown
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.question import Question

IGNORE = -100
QUESTIONS = 4  # about each caption
# What the auxiliary heads tell; class 0 is "not stated".
ATTRIBUTES = (PLACE, SIZE, COLOR, SHAPE, BACKGROUND, COUNT)
UNKNOWN_WORDS = ("teal", "plain", "blurry", "dog", "thing")  # the tokenizer knows none of them
ELSEWHERE = ("A photo of a dog.", "I cannot see the image.", "An image.", "The the the the the the.")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass of training: number of examples and peak learning rate."""

    examples: int
    rate: float


ROUNDS = (Round(examples=100_000, rate=2e-3), Round(examples=100_000, rate=1.5e-3), Round(examples=100_000, rate=1e-3))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt as the judge sends it, its right letter, and what the auxiliary heads should tell.

    `facts` is what the caption states.
    """

    kind: str
    question: SceneQuestion
    facts: Facts
    text: str
    letter: str
    fits: tuple[bool, ...]


def complete(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """All facts."""
    return questions.facts(scene)


def without_its_thing(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts without the thing that the question is about, or without the background."""
    facts = questions.facts(scene)
    if question.kind.asks == BACKGROUND:
        return Facts(background=None, things=facts.things)
    meant = questions.referred(question.named, facts) if question.named else [rng.choice(facts.things)]
    return Facts(background=facts.background, things=tuple(one for one in facts.things if one not in meant))


def without_another_thing(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts without one thing."""
    facts = questions.facts(scene)
    others = [one for one in facts.things if not question.named.items() <= one.items()] or list(facts.things)
    left_out = rng.choice(others)
    return Facts(background=facts.background, things=tuple(one for one in facts.things if one is not left_out))


def wrong(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts of which one to three are wrong."""
    facts = questions.facts(scene)
    things, background = [dict(one) for one in facts.things], facts.background
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.15:
            background = rng.choice(questions.VALUES[BACKGROUND])
            continue
        name = rng.choice((PLACE, SIZE, COLOR, SHAPE))
        values = scenes.SIZES if name == SIZE else questions.VALUES[name]
        new = rng.choice(list(values))
        if name != PLACE or new not in [one[PLACE] for one in things]:
            rng.choice(things)[name] = new
    return Facts(background=background, things=tuple(things))


def of_another_scene(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts of another scene."""
    return questions.facts(scenes.sample_scene(rng))


def incomplete(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts of which some attributes are left out."""
    facts = questions.facts(scene)
    share = rng.choice((0.1, 0.2, 0.4))
    things = [{name: one for name, one in thing.items() if rng.random() > share} for thing in facts.things]
    background = None if rng.random() < share else facts.background
    return Facts(background=background, things=tuple(thing for thing in things if thing))


def nothing(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """No facts."""
    return Facts(background=None, things=())


Make = Callable[[scenes.Scene, SceneQuestion, random.Random], Facts]
# How captions differ from the scene that is asked about, and how often.
CAPTIONS: Sequence[tuple[Make, int]] = (
    (complete, 34),
    (without_its_thing, 15),
    (without_another_thing, 8),
    (wrong, 16),
    (of_another_scene, 12),
    (incomplete, 10),
    (nothing, 5),
)


def worded(facts: Facts, rng: random.Random) -> str:
    """A caption that states these facts, in the words of `scenes.caption` if nothing is left out."""
    if not facts.things and facts.background is None:
        return rng.choice(("", "", "", *ELSEWHERE))
    background = f"On a {facts.background} background"
    if facts.background is None:
        background = rng.choice(("", f"On a {rng.choice(UNKNOWN_WORDS)} background"))
    phrases = [_phrase(thing, rng) for thing in facts.things]
    listed = f"{', '.join(phrases[:-1])} and {phrases[-1]}" if len(phrases) > 1 else "".join(phrases)
    text = ", ".join(filter(None, (background, listed)))
    return f"{text[0].upper()}{text[1:]}."


def _phrase(thing: Mapping[str, str], rng: random.Random) -> str:
    def said(name: str, otherwise: str) -> str:
        return thing.get(name) or (rng.choice(UNKNOWN_WORDS) if rng.random() < 0.3 else otherwise)

    words = ("a", said(SIZE, ""), said(COLOR, ""), said(SHAPE, "shape"))
    place = said(PLACE, "")
    return " ".join(filter(None, (f"at the {place}" if place else "", *words)))


class Prompts:
    """Makes examples with the judge's own prompts. `tokenizer` has the chat template."""

    def __init__(self, tokenizer: Any, rng: random.Random) -> None:
        def apply(messages: Any) -> str:
            return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

        self._rng = rng
        systems = architecture.SYSTEM_PROMPTS
        self._formats = {system: ChatFormat.render(apply, system, image=False) for system in systems}

    def examples(self, make: Make | None = None) -> list[Example]:
        """Questions about one scene and one caption, of the given kind or of a random one."""
        rng = self._rng
        scene = scenes.sample_scene(rng)
        asked = questions.about(scene, rng, QUESTIONS)
        kinds, weights = zip(*CAPTIONS, strict=True)
        make = make or rng.choices(kinds, weights)[0]
        facts = make(scene, asked[0], rng)
        blind = make is nothing and rng.random() < 0.4
        system = rng.choices(architecture.SYSTEM_PROMPTS, (9, 1))[0]
        caption = None if blind else worded(facts, rng)
        return [self._example(question, facts, caption, system, make.__name__) for question in asked]

    def _example(
        self, question: SceneQuestion, facts: Facts, caption: str | None, system: str | None, kind: str
    ) -> Example:
        right = questions.told(question, facts)
        asked = Question(id="", image="", text=question.text, metric="choice", benchmark="", choices=question.choices)
        order = tuple(self._rng.sample(range(len(question.choices)), len(question.choices)))
        shown = Shown(question=asked, order=order, can_refuse=caption is not None)
        number = shown.options.index(right) if right else len(shown.options) - 1
        if caption is None:  # nothing is known, so each option is as likely
            number = self._rng.randrange(len(shown.options))
        turns = shown.turns(caption, one_letter=True, system=system)
        return Example(
            kind=kind,
            question=question,
            facts=facts,
            text=self._formats[system].prompt(turns.user) + turns.begin,
            letter=LETTERS[number],
            fits=tuple(place == number and caption is not None for place in range(len(shown.options))),
        )


class Batch:
    """Examples as tensors, with the places and labels of the auxiliary heads.

    A row has a caption once, and behind it all questions about it; no question sees another one.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Example], Sequence[list[int]]]], words: "Words") -> None:
        self.examples = [example for examples, _ in groups for example in examples]
        self._places = [_places(tokens) for _, tokens in groups]
        length = max(row[-1][-1] + 3 for row in self._places)
        self.tokens = torch.full((len(groups), length), words.end)
        self.positions = torch.zeros((len(groups), length), dtype=torch.long)
        segments = torch.full((len(groups), length), -1)
        ends, things, asked, options = [], [], [], []
        for row, ((examples, tokens), places) in enumerate(zip(groups, self._places, strict=True)):
            for number, (example, ids, at) in enumerate(zip(examples, tokens, places, strict=True)):
                answer = words.letters[example.letter]
                where = [*at, at[-1] + 1, at[-1] + 2]
                self.tokens[row, where] = torch.tensor([*ids, answer, words.stop])
                self.positions[row, where] = torch.arange(len(where))
                segments[row, where] = number + 1
                ends.append((row, at[-1], answer))
                starts = [place for place, one in enumerate(ids) if one in words.markers]
                last = ids.index(words.assistant, starts[-1]) - 1
                asked.append((row, at[starts[0] - 1], *_meant(example)))
                for place, fits in zip([*(start - 1 for start in starts[1:]), last], example.fits, strict=True):
                    options.append((row, at[place], fits))
            caption = tokens[0][: tokens[0].index(words.middle)] if words.middle in tokens[0] else []
            shapes = [place for place, one in enumerate(caption) if one in words.shapes]
            for place, thing in zip(shapes, (one for one in examples[0].facts.things if SHAPE in one), strict=True):
                things.append((row, place, *(_number(name, thing.get(name)) for name in ATTRIBUTES[:3])))
            segments[row, : _common(tokens)] = 0
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        self.mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
        self.ends, self.things, self.asked, self.options = map(
            torch.tensor, (ends, things or [(0,) * 5], asked, options)
        )


def _common(tokens: Sequence[list[int]]) -> int:
    """How many tokens all of them begin with."""
    return next((n for n, column in enumerate(zip(*tokens, strict=False)) if len(set(column)) > 1), len(tokens[0]) - 1)


def _places(tokens: Sequence[list[int]]) -> list[list[int]]:
    """Where each token stands if the common beginning stands there once. Two places are left behind each question."""
    begin = _common(tokens)
    found, used = [], begin
    for one in tokens:
        more = len(one) - begin
        found.append([*range(begin), *range(used, used + more)])
        used += more + 2
    return found


def _number(name: str, found: str | None) -> int:
    return 1 + list(questions.VALUES[name]).index(found) if found else 0


def _meant(example: Example) -> list[int]:
    """For each attribute its number in what the question is about; IGNORE for those that it is not about."""
    kind, facts = example.question.kind, example.facts
    if kind.asks in (BACKGROUND, COUNT):
        found = questions.stated_answer(kind, {}, facts)
        return [_number(name, found) if name == kind.asks else IGNORE for name in ATTRIBUTES]
    things = questions.referred(example.question.named, facts)
    thing = things[0] if len(things) == 1 else {}
    return [_number(name, thing.get(name)) for name in ATTRIBUTES[:4]] + [IGNORE, IGNORE]


class Words:
    """Tokens that training looks for."""

    def __init__(self, tokenizer: Any) -> None:
        def of(text: str) -> int:
            (token,) = tokenizer.encode(text, add_special_tokens=False)
            return int(token)

        self.end, self.assistant, self.stop = of(architecture.END), of(architecture.ASSISTANT), of(".")
        self.middle = of(INSTRUCTION.partition("{caption}")[2].partition("{question}")[0])
        self.letters = {letter: of(f" {letter}") for letter in LETTERS}
        self.markers = {of(marker) for marker in architecture.MARKERS}
        self.shapes = {of(f" {shape}") for shape in scenes.SHAPES}


def _initialised(tokenizer: Any) -> Any:
    """A model in which equal words attend to each other from the start, from the second layer on.

    That is mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828).
    """
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM(architecture.build_config(tokenizer))
    initialise(model, lambda _: architecture.LAYERS)
    for layer in model.model.layers[1:]:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return model


class Trainer:
    """The model and its auxiliary heads."""

    def __init__(self, init: Path | None, seed: int) -> None:
        from transformers import Qwen2ForCausalLM

        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.tokenizer = architecture.build_tokenizer()
        self.words = Words(self.tokenizer)
        self.prompts = Prompts(self.tokenizer, self.rng)
        if init:
            self.model = Qwen2ForCausalLM.from_pretrained(init, dtype=torch.float32)
        else:
            self.model = _initialised(self.tokenizer)
        classes = [1 + len(questions.VALUES[name]) for name in ATTRIBUTES]
        width = architecture.WIDTH
        self.thing_heads = torch.nn.ModuleList([torch.nn.Linear(width, count) for count in classes[:3]])
        self.asked_heads = torch.nn.ModuleList([torch.nn.Linear(width, count) for count in classes])
        self.fits_head = torch.nn.Linear(width, 2)
        heads = (self.thing_heads, self.asked_heads, self.fits_head)
        self.parameters = [*self.model.parameters(), *(one for head in heads for one in head.parameters())]

    def batches(self, size: int, make: Make | None = None, pool: int = 16) -> Iterator[Batch]:
        """Batches of so many captions, each with its questions and of similar length, without end."""
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
        """The residual stream after each layer; the last one normed."""
        inner = self.model.model
        stream = inner.embed_tokens(batch.tokens)
        turned = inner.rotary_emb(stream, batch.positions)
        found = []
        for layer in inner.layers:
            stream = layer(stream, attention_mask=batch.mask, position_embeddings=turned)
            found.append(stream)
        return [*found[:-1], inner.norm(stream)]

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of letters, the mean auxiliary loss, and for each example whether its letter is right."""
        stream = self.hidden(batch)
        rows, places, answers = batch.ends.unbind(1)
        logits = self.model.lm_head(stream[-1][rows, places])
        rest = torch.cat([self.model.lm_head(stream[-1][rows, places + more]) for more in (1, 2)])
        wanted = torch.tensor([self.words.stop] * len(rows) + [self.words.end] * len(rows))
        answer_loss = F.cross_entropy(logits, answers) + 0.1 * F.cross_entropy(rest, wanted)
        right = logits[:, list(self.words.letters.values())].argmax(-1)
        letters = torch.tensor([LETTERS.index(one.letter) for one in batch.examples])
        return answer_loss, self.auxiliary(batch, stream), right == letters

    def auxiliary(self, batch: Batch, stream: list[torch.Tensor]) -> torch.Tensor:
        """What a thing of the caption is, which thing the question means, and which option fits."""
        things = stream[0][batch.things[:, 0], batch.things[:, 1]]
        asked = stream[1][batch.asked[:, 0], batch.asked[:, 1]]
        options = stream[2][batch.options[:, 0], batch.options[:, 1]]
        losses = [F.cross_entropy(head(things), batch.things[:, 2 + n]) for n, head in enumerate(self.thing_heads)]
        for number, head in enumerate(self.asked_heads):
            labels = batch.asked[:, 2 + number]
            if (labels != IGNORE).any():
                losses.append(F.cross_entropy(head(asked), labels, ignore_index=IGNORE))
        return torch.stack(losses).mean() + F.cross_entropy(self.fits_head(options), batch.options[:, 2])

    def run_round(self, plan: Round, captions: int) -> None:
        optimiser, began, done = Cosine(self.parameters, plan.rate), time.monotonic(), 0
        seen: list[tuple[float, float, float]] = []
        for batch in self.batches(captions):
            part = done / plan.examples
            if part >= 1:
                break
            answer_loss, auxiliary, right = self.losses(batch)
            optimiser.step(answer_loss + max(0.0, 1 - part / 0.8) * auxiliary, part)
            done += len(batch.examples)
            seen.append((answer_loss.item(), auxiliary.item(), right.float().mean().item()))
            if len(seen) == 50:
                loss, other, share = (sum(column) / len(seen) for column in zip(*seen, strict=True))
                took = time.monotonic() - began
                print(f"{took:5.0f} s  {done:6d} examples  loss {loss:.3f}  {other:.3f}  right {share:.3f}", flush=True)
                seen = []
        print(f"{time.monotonic() - began:5.0f} s  {self.score()}", flush=True)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score(self, examples: int = 1024) -> str:
        """The share of right letters for each kind of caption, and for right captions by kind of question."""
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
    parser.add_argument("--captions", type=int, default=16, help="of a batch")
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
