"""Find the samples that kill the reader of a unit, from the positions at which its child processes died."""

from caprl_ray.errors import RowFailure

# Limits of one unit, which bound its time: places at which children died more than once, and deaths in all. The unit
# ends at the place of the death that exceeds a limit.
MOST_PLACES, MOST_DEATHS = 4, 20


class Search:
    """Decides after each death of a child which samples of a unit are given up.

    A place is the position of the first sample that a child did not return. The first death at a place gives up
    nothing, because its cause may be external. After the second one, each group of suspects is given up in turn. Once a
    child gets beyond the place, the last group stays given up. If no group helps, the unit ends at the place.
    """

    def __init__(self) -> None:
        self.suspects: list[range] = []
        self._sure: dict[int, RowFailure] = {}
        self._tried: dict[int, RowFailure] = {}
        self._place, self._places, self._deaths = -1, 0, 0

    @property
    def lost(self) -> dict[int, RowFailure]:
        """The samples that the next child skips, and their failures."""
        return self._sure | self._tried

    def needs_suspects(self, place: int) -> bool:
        """Whether a death at this place is the second one there."""
        return place == self._place and not self._tried

    def next(self, place: int, failure: RowFailure) -> None:
        """Record a death and choose what to give up next. Raises the failure if the unit ends at this place."""
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
