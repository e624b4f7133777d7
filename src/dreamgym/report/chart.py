"""What the page's charts are made of: series of points over an axis. The template draws them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Series:
    """Points (x, share) of one kind; ``style`` is a class of the style sheet."""

    name: str
    style: str
    marker: str
    points: list[tuple[float, float]]
    joined: bool = False


@dataclass(frozen=True)
class Chart:
    """Series over one axis from 0 to ``end``, with its ticks; every y is a share."""

    title: str
    axis: str
    end: float
    ticks: list[float] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)


def whole_ticks(end: float, at_most: int = 7) -> list[float]:
    """Whole numbers from 0 to ``end``, few enough to be read."""
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100, 200) if at_most * s >= end), max(1, -(-int(end) // at_most)))
    return [float(t) for t in range(0, int(end) + 1, step)]
