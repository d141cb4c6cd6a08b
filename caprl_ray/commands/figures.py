"""A figure of an estimate with its interval and its basis, as data and as text."""

from dataclasses import dataclass

from caprl_ray.commands.estimate import Estimate, Interval

SHARES = 8  # flags or codes that are shown, at most


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with the ends of its interval, None if unknown, and its basis. The value is None if it cannot be
    estimated."""

    value: float | None
    low: float | None
    high: float | None
    rests_on: str

    @classmethod
    def of(cls, found: Estimate | Interval | None, rests_on: str) -> "Figure":
        """A figure of an estimate."""
        bounds = found.interval if isinstance(found, Estimate) else found
        return cls(
            value=found.value if found else None,
            low=bounds.low if bounds else None,
            high=bounds.high if bounds else None,
            rests_on=rests_on,
        )

    def said(self, before: str = "") -> str:
        """As text: with the interval if there is one, and `before` in front of each number."""
        if self.value is None:
            return f"not known; {self.rests_on}"
        text = f"{before}{_number(self.value)}"
        if self.low is None or self.high is None:
            text += " (no interval: too little was seen)"
        elif self.low != self.high:
            text += f" [{before}{_number(self.low)} to {before}{_number(self.high)}]"
        return f"{text}; {self.rests_on}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}"


def share_said(share: Interval) -> str:
    """A share for people."""
    if share.low == share.high:
        return f"{share.value:.1%}"
    return f"{share.value:.1%} [{share.low:.1%} to {share.high:.1%}]"


def shares_said(found: dict[str, Interval]) -> str:
    """Shares by name for people, the first SHARES."""
    shown = [f"{name} {share_said(share)}" for name, share in list(found.items())[:SHARES]]
    return ", ".join(shown + [f"{len(found) - SHARES} more"] * (len(found) > SHARES)) or "none"
