"""Simulate how much CapRL's reward of one and the same caption varies with the questions that are drawn.

    python benchmarks/reward_noise.py [--images 200] [--seeds 40] [--right 0.9] [--json FILE]

There are captions of rendered scenes with a few facts wrong or left out, five questions about each scene, and a reader
of known quality: with the probability --right it answers what the caption says, and otherwise it chooses any option.
Each caption is rewarded with --seeds seeds as CapRL's server does, with N = 1, 2, 4 and 8 draws. The table shows for
each N:

    deviation   the standard deviation of a caption's reward over the seeds; the mean over captions
    in order    how often the better one of two captions of an image gets more reward; a tie counts as half. The better
                one answers more of all questions, read without errors.

Beside them is the paper's result of training with this number of questions per caption: the average of five benchmarks
(arXiv 2509.22647). That is another quantity, so only the trends can be compared.

Keys of the JSON: deviation_N, in_order_N for each N.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from caprl_ray.embedded import questions, scenes
from caprl_ray.embedded.rules import Rules, Said
from caprl_ray.recipe.turns import Turns
from caprl_ray.score.reward import STRICT, Reward, caption_reward

DRAWS = (1, 2, 4, 8)
PAPER = {1: 47.3, 2: 47.6, 4: 48.4, 8: 48.3}
WRONG = 0.3  # of the words of a caption that tell something


class Errs(Rules):
    """A reader that is right with a given probability."""

    def __init__(self, right: float) -> None:
        self._right = right

    async def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Said:
        """Answer, the same under the same seed."""
        rng = random.Random(f"{sampling.get('seed')}{prompt.user}")
        if rng.random() < self._right:
            return await super().caption(picture, prompt, sampling)
        letters = [line[2] for line in prompt.user.rpartition("Question:")[2].splitlines()[1:]]
        return Said(f" {rng.choice(letters)}")


def spoiled(scene: scenes.Scene, rng: random.Random) -> str:
    """A caption with some wrong words."""
    other = scenes.sample_scene(rng, least=3)
    words = scenes.caption(scene).split(" ")
    known = {one for values in (scenes.COLOURS, scenes.SHAPES, scenes.SIZES) for one in values}
    swaps = [word for word in scenes.caption(other).replace(",", "").rstrip(".").split(" ") if word in known]

    def told(word: str) -> str:
        bare = word.rstrip(",.")
        return rng.choice(swaps) + word[len(bare) :] if bare in known and rng.random() < WRONG else word

    return " ".join(map(told, words))


def rewards(captions: Sequence[str], asked: Sequence[Any], reader: Rules, reward: Reward) -> list[float]:
    """The rewards; none is None."""
    return [worth or 0.0 for worth in caption_reward(captions, asked, reader, reward=reward)]


def main() -> None:
    """Simulate, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="number of scenes, with two captions each")
    parser.add_argument("--seeds", type=int, default=40, help="how often each caption is rewarded")
    parser.add_argument("--right", type=float, default=0.9, help="the reader's share of right readings")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    rng, reader = random.Random(1), Errs(args.right)
    shown = [scenes.sample_scene(rng, least=2) for _ in range(args.images)]
    pairs = [spoiled(scene, rng) for scene in shown for _ in range(2)]
    asked = [_asked(scene, rng) for scene in shown]
    twice = [one for one in asked for _ in range(2)]
    truth = rewards(pairs, twice, Rules(), STRICT)
    figures: dict[str, float] = {}
    print(f"{'draws':>6}{'deviation':>12}{'in order':>12}{'paper':>8}")
    for draws in DRAWS:
        drawn = [rewards(pairs, twice, reader, Reward(draws=draws, seed=seed)) for seed in range(args.seeds)]
        deviation = mean(pstdev(values) for values in zip(*drawn, strict=True))
        order = mean(_in_order(truth, values) for values in drawn)
        figures |= {f"deviation_{draws}": deviation, f"in_order_{draws}": order}
        print(f"{draws:>6}{deviation:>12.3f}{order:>12.1%}{PAPER[draws]:>8}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def _asked(scene: scenes.Scene, rng: random.Random) -> list[dict[str, Any]]:
    made = questions.about(scene, rng, 5)
    return [{"question": one.text, "choices": list(one.choices), "answer": one.answer} for one in made]


def _in_order(truth: Sequence[float], given: Sequence[float]) -> float:
    """How often the better one of two captions gets more reward."""
    found = []
    for place in range(0, len(truth), 2):
        better, more = truth[place] - truth[place + 1], given[place] - given[place + 1]
        if better:
            found.append(0.5 if not more else float(better * more > 0))
    return mean(found)


if __name__ == "__main__":
    main()
