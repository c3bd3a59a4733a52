"""What a run costs, by prices that the user names; this library has none of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from tasks.errors import ConfigurationError
from tasks.naming import suggest

UNITS = {"per_1000_requests": 1000.0, "per_GB": 1e9, "per_cpu_hour": 3600.0, "per_gpu_hour": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in a currency: of 1000 requests, of 10^9 bytes read, of an hour of one core, of an hour of one GPU."""

    currency: str
    per_1000_requests: float = 0.0
    per_GB: float = 0.0  # noqa: N815
    per_cpu_hour: float = 0.0
    per_gpu_hour: float = 0.0

    def cost(self, *, requests: int, bytes: int, cpu_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:  # noqa: A002
        """Return what that costs, in the currency."""
        amounts = zip((requests, bytes, cpu_seconds, gpu_seconds), UNITS.items(), strict=True)
        return sum(amount / unit * float(getattr(self, name)) for amount, (name, unit) in amounts)


def read_prices(path: str) -> Prices:
    """Return the prices in a YAML or JSON file: the keys of `Prices`, each but the currency a number.

    Raises ConfigurationError where it cannot be read, or has other keys or values.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"prices names {path}, which cannot be read: {error}") from error
    known = [field.name for field in fields(Prices)]
    if not isinstance(found, dict) or not isinstance(found.get("currency"), str):
        raise ConfigurationError(f"prices names {path}, which has no currency: write lines such as currency: USD")
    if unknown := [str(name) for name in found if name not in known]:
        raise ConfigurationError(
            f"prices names {path}, which has {unknown[0]!r}{suggest(unknown[0], known)}; it may have "
            + ", ".join(known)
        )
    for name in UNITS:
        _check(path, name, found.get(name, 0.0))
    return Prices(**found)


def _check(path: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigurationError(f"prices names {path}, whose {name} is {value!r}: write a number, 0 or more")
