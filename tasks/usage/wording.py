"""A forecast, and an account of what was taken, in words: tables for pages and terminals alike, and short log lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.naming import escape_markdown
from tasks.usage.account import Account
from tasks.usage.forecast import Forecast, Need

Row = tuple[str, ...]


def write_bytes(size: float) -> str:
    """Return a number of bytes as people write it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def write_seconds(seconds: float | None) -> str:
    """Return a time as people write it, a dash where it is not known."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_lack(need: Need) -> str:
    """Return a sentence on what there is no room for, and what to change."""
    lack = (
        f"{need.name}: {write_bytes(need.bytes)} may be needed in {need.place}, and {write_bytes(need.free)} are free"
    )
    return f"{lack}: {need.remedy}"


def write_lines(forecast: Forecast) -> Iterator[str]:
    """Yield what a run will take in short lines, as it logs them at its beginning."""
    passes = ", ".join(f"{stage.name} {stage.requests:,}" for stage in forecast.stages)
    yield (
        f"To read: {forecast.shards:,} shards, {forecast.rows:,} rows: {forecast.requests:,} requests ({passes}), "
        f"{write_bytes(forecast.bytes)}"
    )
    memory, about = forecast.memory, write_seconds(forecast.seconds)
    time = f"about {about} by {forecast.pace}" if forecast.seconds is not None else forecast.pace
    disk = "; ".join(f"{need.name} {write_bytes(need.bytes)} of {write_bytes(need.free)}" for need in forecast.disk)
    yield f"To take: memory {write_bytes(memory.bytes)} of {write_bytes(memory.free)}; {disk}; time: {time}"


def write_forecast(forecast: Forecast) -> str:
    """Return a forecast as Markdown: what there is no room for first, then one table."""
    lacks = [f"**{write_lack(need)}**" for need in forecast.short]
    return "\n\n".join([*lacks, write_table(("what", "foreseen", "there is"), list(_tabulate(forecast)))])


def _tabulate(forecast: Forecast) -> Iterator[Row]:
    yield "shards", f"{forecast.shards:,}", ""
    yield "rows", f"{forecast.rows:,}", ""
    for stage in forecast.stages:
        passes = f" in {stage.passes:.4g} passes" if stage.passes else ""
        yield stage.name, f"{stage.requests:,} requests, {write_bytes(stage.bytes)}{passes}", ""
    yield "all requests", f"{forecast.requests:,}", ""
    yield "all bytes", write_bytes(forecast.bytes), ""
    for need in forecast.needs:
        yield f"{need.name} at most", write_bytes(need.bytes), f"{write_bytes(need.free)} in {need.place}"
    yield "time", write_seconds(forecast.seconds), f"by {forecast.pace}" if forecast.seconds else forecast.pace


def write_account(account: Account) -> str:
    """Return what was foreseen beside what was measured, as Markdown: a sentence on attempts, and a table."""
    table = write_table(("what it took", "foreseen", "measured"), list(_compare(account)))
    attempts = account.usage.attempts
    if attempts < 2:
        return table
    together = f"Measured are all {attempts} attempts together, of memory the most; foreseen was one without a stop."
    return f"{table}\n\n{together}"


def write_cost(account: Account) -> str:
    """Return what a run cost, in the currency of its prices; empty without prices."""
    if account.prices is None or account.cost is None:
        return ""
    return f"{account.cost:.4g} {escape_markdown(account.prices.currency)}"


def _compare(account: Account) -> Iterator[Row]:
    expected, used = account.forecast, account.usage
    yield "requests", f"{expected.requests:,}", f"{used.requests:,}"
    yield "bytes read", write_bytes(expected.bytes), write_bytes(used.bytes)
    yield "peak memory", write_bytes(expected.memory.bytes), write_bytes(used.peak_memory)
    yield "time", write_seconds(expected.seconds), write_seconds(used.seconds)
    yield "CPU time", "–", write_seconds(used.cpu_seconds)
    if expected.gpus:
        yield "GPU time", "–", write_seconds(used.gpu_seconds)
    if account.prices:
        foreseen = account.prices.cost(requests=expected.requests, bytes=expected.bytes)
        currency = escape_markdown(account.prices.currency)
        yield "cost", f"{foreseen:.4g} {currency} of reading", write_cost(account)


def write_table(header: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table whose columns stand below each other in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in (header, rule, *rows)
    )
