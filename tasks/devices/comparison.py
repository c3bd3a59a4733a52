"""Figures set against each other: a device against the CPU, a run against another run.

The figures come from measurement; plots draws the ratios.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from tasks.devices.measurement import Figure


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast one figure is as another of the same name, dtype and size: seconds of that over its own.

    `low` and `high` are what the quartiles allow.
    """

    name: str
    device: str
    dtype: str
    size: int
    ratio: float
    low: float
    high: float
    noisy: bool

    def to_row(self) -> dict[str, object]:
        """Return a flat row of plain values."""
        return asdict(self)


def compare_devices(figures: Iterable[Figure], base: str = "cpu") -> list[Ratio]:
    """Return base seconds / device seconds for every figure that both have (above 1: the device is faster)."""
    figures = list(figures)
    bases = {(figure.name, figure.dtype, figure.size): figure for figure in figures if figure.device == base}
    return [
        _divide(bases[figure.name, figure.dtype, figure.size], figure)
        for figure in figures
        if figure.device != base and (figure.name, figure.dtype, figure.size) in bases
    ]


def compare_runs(figures: Iterable[Figure], against: Iterable[Figure]) -> list[Ratio]:
    """Return the other run's seconds / this run's for every figure that both have (above 1: this run is faster)."""
    others = {figure.key: figure for figure in against}
    return [_divide(others[figure.key], figure) for figure in figures if figure.key in others]


def find_win(ratios: Iterable[Ratio]) -> int | None:
    """Return the size from which on the device wins at every measured size, or None where it loses at the largest."""
    win = None
    for ratio in sorted(ratios, key=lambda ratio: ratio.size, reverse=True):
        if ratio.ratio <= 1:
            break
        win = ratio.size
    return win


def _divide(base: Figure, figure: Figure) -> Ratio:
    return Ratio(
        name=figure.name,
        device=figure.device,
        dtype=figure.dtype,
        size=figure.size,
        ratio=base.seconds / figure.seconds,
        low=base.low / figure.high,
        high=base.high / figure.low,
        noisy=base.noisy or figure.noisy,
    )
