"""How long a training iteration should take, from measured rates: streamed, and with the data resident on the device.

The rates come from measurement and, for the stream, from whoever has measured it. The model is a pipeline whose stages
overlap, unless they share a resource: then they take turns, and the busiest resource sets the pace.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.devices.measurement import Figure

Data = Literal["streamed", "resident"]
Source = Literal["network", "disk"]  # of the shards' bytes

MOST_APART = 2.0  # times that measured and predicted seconds lie apart, beyond which a prediction explains nothing


@dataclass(frozen=True, kw_only=True)
class StreamRates:
    """What the stages before a step do, each alone on the whole machine.

    `fetch` in bytes/s of the shards, `receive` in bytes/s that all cores together could take in (what fetching costs
    the processor), `decode` and `prepare` in rows/s. A row has `row_bytes` bytes in the shards, and is so many
    `numbers` of 8 bytes on its way to a device. `source` is what fetching keeps busy.
    """

    fetch: float
    receive: float
    decode: float
    prepare: float
    row_bytes: float
    numbers: int
    source: Source = "network"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of an iteration: the seconds that it keeps a resource busy."""

    name: str
    resource: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds an iteration, as predicted and, where it was, as `measured`."""

    data: Data
    device: str
    rows: int
    stages: tuple[Stage, ...]
    seconds: float
    bottleneck: str
    measured: float | None = None

    @property
    def explains(self) -> bool:
        """Whether it agrees with what was measured, where it was; where it does not, no bottleneck is known."""
        return self.measured is None or 1 / MOST_APART <= self.measured / self.seconds <= MOST_APART

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Prediction":
        """Return the prediction that plain JSON types were made of by `asdict`."""
        return cls(**{**plain, "stages": tuple(Stage(**stage) for stage in plain["stages"])})


def predict(
    figures: Iterable[Figure], device: str, rows: int, rates: StreamRates | None = None, dtype: str = "float64"
) -> list[Prediction]:
    """Predict an iteration of `rows` rows on a device: streamed, where the stream's rates are known, and resident.

    The step's and the copy's measured rates are taken to hold for other batch sizes. Empty where the step was not
    measured; without the copy's figure no streamed prediction is made for an accelerator.
    """
    measured = {(figure.name, figure.device, figure.dtype): figure for figure in figures}
    step = measured.get(("step", device, dtype))
    if step is None:
        return []
    stepping = Stage(name="step", resource=device, seconds=rows / step.rate)
    resident = _overlap("resident", device, rows, [stepping])
    copy = measured.get(("host_to_device_pinned", device, "float64"))
    if rates is None or (device != "cpu" and copy is None):
        return [resident]
    size, prepare = rows * rates.row_bytes, measured.get(("prepare", device, dtype))
    place, prepared = (device, prepare.rate) if prepare else ("cpu", rates.prepare)
    stages = [
        Stage(name="fetch", resource=rates.source, seconds=size / rates.fetch),
        Stage(name="receive", resource="cpu", seconds=size / rates.receive),
        Stage(name="decode", resource="cpu", seconds=rows / rates.decode),
        Stage(name="prepare", resource=place, seconds=rows / prepared),
    ]
    if copy is not None:
        stages.append(Stage(name="copy", resource="link", seconds=rows * rates.numbers * 8 / copy.rate))
    return [_overlap("streamed", device, rows, [*stages, stepping]), resident]


def _overlap(data: Data, device: str, rows: int, stages: list[Stage]) -> Prediction:
    """Add up the stages on each resource; the busiest one's sum is the iteration's time."""
    busy: dict[str, float] = {}
    for stage in stages:
        busy[stage.resource] = busy.get(stage.resource, 0.0) + stage.seconds
    busiest = max(busy, key=lambda resource: busy[resource])
    longest = max((stage for stage in stages if stage.resource == busiest), key=lambda stage: stage.seconds)
    return Prediction(
        data=data,
        device=device,
        rows=rows,
        stages=tuple(stages),
        seconds=busy[busiest],
        bottleneck=longest.name,
    )


def leave_out(prediction: Prediction, names: Iterable[str]) -> Prediction:
    """Return the prediction of an iteration without some of its stages; one at least is left."""
    stages = [stage for stage in prediction.stages if stage.name not in set(names)]
    return _overlap(prediction.data, prediction.device, prediction.rows, stages)


def limit_speedup(prediction: Prediction) -> float:
    """Return how many times as fast an iteration would be if its step took no time at all (Amdahl's law).

    Infinite where the step is all there is.
    """
    others = [stage for stage in prediction.stages if stage.name != "step"]
    if not others:
        return float("inf")
    return prediction.seconds / _overlap(prediction.data, prediction.device, prediction.rows, others).seconds
