"""Find the samples that kill the reader of a unit, from the places where children die."""

from caprl_ray.errors import RowFailure

# Limits of one unit, which bound its time: places at which children died more than once, and deaths in all. Beyond them
# the unit ends there.
MOST_PLACES, MOST_DEATHS = 4, 20


class Search:
    """Which samples of a unit are given up, after each death of a child.

    Invariant: at one place, the first sample that a child did not give, it dies once with nothing given up, because
    that may have an external cause. Then each of the suspects is given up in turn. When a child gets beyond the
    place, those stay that it had given up. If it gets beyond with none of them, the unit ends at the place.
    """

    def __init__(self) -> None:
        self.suspects: list[range] = []
        self._sure: dict[int, RowFailure] = {}
        self._tried: dict[int, RowFailure] = {}
        self._place, self._places, self._deaths = -1, 0, 0

    @property
    def lost(self) -> dict[int, RowFailure]:
        """The samples that the next child passes over, and why."""
        return self._sure | self._tried

    def needs_suspects(self, place: int) -> bool:
        """Whether a death at this place is the second one there."""
        return place == self._place and not self._tried

    def next(self, place: int, failure: RowFailure) -> None:
        """Decide after a death. Raises the failure if the unit ends at this place."""
        self._deaths += 1
        if place != self._place:
            self._sure = self.lost
            self._place, self._tried = place, {}
        else:
            self._places += not self._tried
            if not self.suspects or self._places > MOST_PLACES:
                raise failure
            self._tried = dict.fromkeys(self.suspects.pop(0), failure)
        if self._deaths > MOST_DEATHS:
            raise failure
