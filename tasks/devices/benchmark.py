"""A whole benchmark as one fact: what was measured, on which hardware, and the file that another is compared with."""

import json
from dataclasses import asdict, dataclass

from tasks.devices.comparison import Ratio
from tasks.devices.description import Hardware
from tasks.devices.measurement import Figure
from tasks.devices.planning import Mode
from tasks.devices.prediction import Prediction

FILE = "benchmark.json"  # all of a benchmark, as another one, or a training's forecast, reads it


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The figures of one machine, what they mean, and sentences on what was left out or disturbed them.

    `seconds` is what all of it took; `names` are the measured devices' names for people, the CPU first.
    """

    mode: Mode
    seconds: float
    hardware: Hardware
    names: dict[str, str]
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...]
    predictions: tuple[Prediction, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the text of `benchmark.json`; each figure has its spread, and whether it is too noisy to use."""
        return json.dumps(asdict(self) | {"figures": [figure.to_row() for figure in self.figures]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Benchmark":
        """Return the benchmark that a text was made of; raises ValueError where it is no benchmark's."""
        try:
            plain = json.loads(text)
            parts = {
                "hardware": Hardware.from_dict(plain["hardware"]),
                "figures": tuple(Figure.from_row(row) for row in plain["figures"]),
                "ratios": tuple(Ratio(**row) for row in plain["ratios"]),
                "predictions": tuple(Prediction.from_dict(each) for each in plain["predictions"]),
                "left_out": tuple(plain["left_out"]),
                "notes": tuple(plain["notes"]),
            }
            return cls(**plain | parts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the text of a benchmark: {error!r}") from error
