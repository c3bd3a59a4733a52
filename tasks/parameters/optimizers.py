"""The constants of each optimiser that can be chosen: what they may be, and where a search looks for them.

Their names and defaults are torch's; `beta1` and `beta2` are the two of its `betas`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.parameters.marks import Searchable


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant of an optimiser, which is `least` or more and `below` a bound; what a search tries of it."""

    least: float = 0.0
    below: float = math.inf
    searched: Searchable


MOMENTUM = Constant(below=1, searched=Searchable(low=0.0, high=0.99))
BETA1 = Constant(below=1, searched=Searchable(low=0.5, high=0.99))
BETA2 = Constant(below=1, searched=Searchable(low=0.9, high=0.9999))
EPS = Constant(searched=Searchable(low=1e-10, high=1e-4, log=True))
CONSTANTS: Mapping[str, Mapping[str, Constant]] = {
    "SGD": {"momentum": MOMENTUM},
    "Adam": {"beta1": BETA1, "beta2": BETA2, "eps": EPS},
    "AdamW": {
        "beta1": BETA1,
        "beta2": BETA2,
        "eps": EPS,
        "weight_decay": Constant(searched=Searchable(low=1e-6, high=0.1, log=True)),
    },
    "RMSprop": {
        "alpha": Constant(below=1, searched=Searchable(low=0.8, high=0.999)),
        "eps": EPS,
        "momentum": MOMENTUM,
    },
    "Adagrad": {
        "lr_decay": Constant(searched=Searchable(low=1e-6, high=0.1, log=True)),
        "eps": EPS,
    },
}


def read_options(optimizer: str, given: Sequence[str]) -> dict[str, float]:
    """Return an optimiser's constants from texts such as `momentum=0.9`.

    Raises ValueError, which says what is wrong, for one that it does not have or that is out of bounds.
    """
    known, options = CONSTANTS[optimizer], {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"optimizer_options has {text!r}: the constants of {optimizer} are {', '.join(known)}")
        if name in options:
            raise ValueError(f"optimizer_options names {name} twice: leave one out")
        try:
            options[name] = float(value)
        except ValueError:
            raise ValueError(f"optimizer_options has {text!r}: write a number, such as {name}=0.9") from None
        constant = known[name]
        if not constant.least <= options[name] < constant.below:
            bound = "finite" if math.isinf(constant.below) else f"less than {constant.below:g}"
            raise ValueError(f"optimizer_options has {text!r}: it must be at least {constant.least:g} and {bound}")
    return options
