"""Keep the questions that a model answers right with the image, but not without it."""

from collections.abc import Sequence
from dataclasses import dataclass

# CapRL's limits (arXiv 2509.22647, section 3.2): more with the image, fewer without it.
LEAST_SEEN, MOST_UNSEEN = 0.75, 0.25

NOT_SEEN = "not_answered"
GUESSED = "answered_blind"
UNCLEAR = "unclear"
DROPPED = {
    NOT_SEEN: "Too few answers with the image are right: the question is wrong, unclear or too hard.",
    GUESSED: "Too many answers without the image are right: the question gives its answer away.",
    UNCLEAR: "Too few answers chose an option, or the answering model failed.",
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The answers to a question: numbers of options, None for an answer that chose none. `right` is the right one."""

    right: int
    seen: Sequence[int | None]
    unseen: Sequence[int | None]

    @property
    def accuracy_seen(self) -> float | None:
        """The share of right answers with the image; None if there is no answer."""
        return _accuracy(self.seen, self.right)

    @property
    def accuracy_unseen(self) -> float | None:
        """The share of right answers without the image; None if there is no answer."""
        return _accuracy(self.unseen, self.right)

    def dropped(self, least_seen: float = LEAST_SEEN, most_unseen: float = MOST_UNSEEN) -> str | None:
        """The reason why the question is dropped; None if it is kept. An accuracy equal to a limit is not enough."""
        with_image, without = self.accuracy_seen, self.accuracy_unseen
        if with_image is None or without is None or None in (*self.seen, *self.unseen):
            return UNCLEAR
        if with_image <= least_seen:
            return NOT_SEEN
        return GUESSED if without >= most_unseen else None


def _accuracy(answers: Sequence[int | None], right: int) -> float | None:
    given = [answer for answer in answers if answer is not None]
    return sum(answer == right for answer in given) / len(given) if given else None
