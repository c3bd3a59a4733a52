"""A benchmark in words: the verdict, the report as markdown, and numbers with their units.

How it is drawn stands in plots, where it is shown in tasks.benchmark.report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tasks.devices.benchmark import Benchmark
from tasks.devices.comparison import Ratio, find_win
from tasks.devices.description import CudaDevice, Hardware
from tasks.devices.measurement import Figure
from tasks.devices.prediction import MOST_APART, Data, Prediction, Stage, limit_speedup
from tasks.naming import escape_markdown

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))


def write_verdict(benchmark: Benchmark) -> str:
    """Return the sentence by which someone decides whether a GPU is worth its price for this job, with its caveat."""
    return f"{_write_gap(benchmark)}{_write_finding(benchmark)}{_write_caveat(benchmark)}"


def _write_gap(benchmark: Benchmark) -> str:
    """Return a sentence on iterations that took another time than predicted, and so for no known reason."""
    apart = "; ".join(
        f"{each.data} on {each.device} {write_unit(each.measured, 's')} against {write_unit(each.seconds, 's')}"
        for each in benchmark.predictions
        if each.measured is not None and not each.explains
    )
    if not apart:
        return ""
    return (
        f"Iterations as measured and as predicted differ more than {MOST_APART:g}-fold ({apart}), so no bottleneck is "
        "named for them. "
    )


def _write_caveat(benchmark: Benchmark) -> str:
    """Return a sentence on those figures which predictions rest on and which are too noisy to use, else nothing."""
    streaming = {"host_to_device_pinned", "streamed_iteration", "resident_iteration"}
    names = {"step"} | (streaming if _has_streamed(benchmark) else set())
    noisy = [
        f"{write_name(figure.name, figure.device)} on {figure.device}"
        for figure in benchmark.figures
        if figure.noisy and figure.name in names and figure.dtype == "float64"
    ]
    if not noisy or not benchmark.predictions:
        return ""
    return f" But this rests on figures too noisy to use ({', '.join(noisy)}): measure again on an idle machine."


def _has_streamed(benchmark: Benchmark) -> bool:
    return any(each.data == "streamed" for each in benchmark.predictions)


def _write_finding(benchmark: Benchmark) -> str:
    by_place = {(each.data, each.device): each for each in benchmark.predictions}
    devices = [device for device in benchmark.names if device != "cpu"]
    if ("resident", "cpu") not in by_place:
        return "The training step could not be measured within the time budget: raise it."
    if not devices:
        return _write_cpu_verdict(by_place["resident", "cpu"], by_place.get(("streamed", "cpu")))
    places: dict[Data, str] = {"streamed": "from streamed shards", "resident": "with the data kept on the device"}
    sentences = []
    for device in devices:
        pairs = [
            (by_place[data, "cpu"], by_place[data, device], where)
            for data, where in places.items()
            if (data, device) in by_place and (data, "cpu") in by_place
        ]
        if not pairs:
            sentences.append(f"On {benchmark.names[device]} no training iteration could be measured.")
            continue
        verb = "should be" if any(each.measured is None for *both, _ in pairs for each in both) else "was measured as"
        gains = [f"{_divide(cpu, gpu):.3g} times as fast as on the CPU {where}" for cpu, gpu, where in pairs]
        sentences.append(f"On {benchmark.names[device]} a training iteration {verb} {' and '.join(gains)}.")
    return " ".join(sentences)


def _divide(cpu: Prediction, gpu: Prediction) -> float:
    """Return the seconds on the CPU by those on the GPU: the measured ones, where both were."""
    if cpu.measured is None or gpu.measured is None:
        return cpu.seconds / gpu.seconds
    return cpu.measured / gpu.measured


def _write_cpu_verdict(resident: Prediction, streamed: Prediction | None) -> str:
    seconds, of_step = resident.seconds, f"with a batch of {resident.rows:,} rows"
    if resident.measured is not None:
        seconds, of_step = resident.measured, f"as measured {of_step} that stays in memory"
    step = f"A training step takes {write_unit(seconds, 's')} on this CPU, {of_step}, and there is no GPU to compare."
    if streamed is None:
        return step
    seconds, how = (streamed.seconds, "predicted") if streamed.measured is None else (streamed.measured, "measured")
    iteration = f"{step} From streamed shards an iteration takes {write_unit(seconds, 's')}, as {how}"
    if not streamed.explains:
        return f"{iteration}."
    return (
        f"{iteration}, bound by {_name_bottleneck(streamed)}: a GPU that took no time at all would make that "
        f"{limit_speedup(streamed):.3g} times as fast at most."
    )


def _name_bottleneck(each: Prediction) -> str:
    resources = {stage.name: stage.resource for stage in each.stages}
    return write_name(each.bottleneck, resources.get(each.bottleneck, each.device))


def write_report(benchmark: Benchmark, changes: Sequence[Ratio] = (), against: Benchmark | None = None) -> str:
    """Return the report as markdown; `changes` are the figures' ratios to those of the run it stands against."""
    predictions = [
        "| iteration | device | predicted | measured | bottleneck |",
        "|---|---|---:|---:|---|",
        *(_write_prediction(each) for each in benchmark.predictions),
    ]
    noisy = sum(figure.noisy for figure in benchmark.figures)
    sums = (
        " a + b by size is in the table and the plots." if any(each.name == "add" for each in benchmark.figures) else ""
    )
    parts = [
        f"**{write_verdict(benchmark)}**",
        "\n".join(predictions),
        "\n".join([*_write_stages(benchmark.predictions), *_write_scaling(benchmark)]),
        *write_wins(benchmark.ratios),
        *(write_changes(changes, against.names) if against else ()),
        write_figures(_choose_shown(benchmark.figures)),
        f"{len(benchmark.figures)} figures in {benchmark.seconds:.0f} s ({benchmark.mode} mode), {noisy} of them too "
        "noisy to use: quartiles more than 10 % apart, fewer than 4 samples, or other processes that took the "
        f"processor.{sums}",
        _write_list("Disturbances", benchmark.notes),
        _write_list("Left out", benchmark.left_out),
        f"**Hardware**\n\n{write_description(replace(benchmark.hardware, left_out=()))}",
    ]
    return "\n\n".join(part for part in parts if part)


def _choose_shown(figures: Sequence[Figure]) -> list[Figure]:
    """Return all figures but a + b by size, of which those are shown that were waited for too."""
    waited = {figure.key[1:] for figure in figures if figure.name == "add_latency"}
    return [figure for figure in figures if figure.name != "add" or figure.key[1:] in waited]


def _write_list(heading: str, sentences: Sequence[str]) -> str:
    lines = "\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences)
    return f"**{heading}**\n\n{lines}" if lines else ""


def _write_scaling(benchmark: Benchmark) -> list[str]:
    """Say from how many rows predicted steps are scaled, where they are; what an iteration costs besides is not in."""
    measured = {figure.size for figure in benchmark.figures if figure.name == "step"}
    scaled = measured - {each.rows for each in benchmark.predictions}
    if not scaled or not benchmark.predictions:
        return []
    return [
        f"- Predicted steps are scaled, in proportion to the rows, from a measured batch of {max(scaled):,} rows: what "
        "an iteration takes whatever its rows is not in them."
    ]


def _write_prediction(each: Prediction) -> str:
    measured = "–" if each.measured is None else write_unit(each.measured, "s")
    bottleneck = _name_bottleneck(each) if each.explains else "unexplained"
    cells = (f"{each.data}, {each.rows:,} rows", each.device, write_unit(each.seconds, "s"), measured, bottleneck)
    return f"| {' | '.join(cells)} |"


def _write_stages(predictions: Sequence[Prediction]) -> list[str]:
    return [
        f"- Stages, {each.data} on {each.device}: {', '.join(map(_write_stage, each.stages))}. Those that share a "
        "resource take turns."
        for each in predictions
        if len(each.stages) > 1
    ]


def _write_stage(each: Stage) -> str:
    return f"{write_name(each.name, each.resource)} {write_unit(each.seconds, 's')}"


def write_figures(figures: Sequence[Figure]) -> str:
    """Return figures as a markdown table that is narrow enough for a page; those too noisy to use are marked."""
    rows = [
        f"| {write_name(figure.name, figure.device)} | {figure.device} | {figure.dtype} | {figure.size:,} "
        f"| {write_unit(figure.seconds, 's')} | {write_spread(figure)}{', **too noisy**' if figure.noisy else ''} "
        f"| {write_unit(figure.rate, figure.unit)}"
        f"{f', {figure.rate / figure.limit:.0%} of limit' if figure.limit else ''} |"
        for figure in figures
    ]
    heading = "| what | device | dtype | size | time | spread | rate |\n|---|---|---|---:|---:|---:|---:|"
    return "\n".join([heading, *rows]) if rows else ""


def write_wins(ratios: Sequence[Ratio]) -> list[str]:
    """Say for each device and dtype from which size on it adds vectors faster than the CPU."""
    lines: dict[tuple[str, str], list[Ratio]] = {}
    for ratio in ratios:
        if ratio.name == "add":
            lines.setdefault((ratio.device, ratio.dtype), []).append(ratio)
    wins = {place: find_win(line) for place, line in lines.items()}
    return [
        f"a + b in {dtype}: {device} is faster than the CPU "
        + (f"from {win:,} elements on." if win is not None else "at no size measured.")
        for (device, dtype), win in wins.items()
    ]


def write_changes(changes: Sequence[Ratio], names: Mapping[str, str]) -> list[str]:
    """Return the comparison with a run on devices of these names: a table of all but a + b, which is in the plots."""
    others = ", ".join(f"{device}: {name}" for device, name in names.items())
    rows = [
        f"| {write_name(each.name, each.device)} | {each.device} | {each.dtype} | {each.size:,} | {each.ratio:.3g} | "
        f"{each.low:.3g} … {each.high:.3g}{', **too noisy**' if each.noisy else ''} |"
        for each in changes
        if each.name != "add"
    ]
    heading = "| what | device | dtype | size | times as fast | by the quartiles |\n|---|---|---|---:|---:|---|"
    return [f"**Against the other run** ({others}; {len(changes)} figures in common)", "\n".join([heading, *rows])]


def write_description(hardware: Hardware) -> str:
    """Return the hardware as markdown for people, with what could not be described and nvidia-smi's own table."""
    cpu, memory, torch = hardware.cpu, hardware.memory, hardware.torch
    quota = f", {cpu.quota:g} by its control group" if cpu.quota else ""
    limit = f" of {memory.total / 2**30:.1f}, limited by its control group" if memory.limit else ""
    lines = [
        f"- **Processor**: {cpu.model}, {cpu.usable:g} cores usable "
        f"(of {cpu.logical_cores}; {cpu.affinity} by affinity{quota})",
        f"- **Memory**: {memory.usable / 2**30:.1f} GiB{limit}; {memory.available / 2**30:.1f} GiB available",
        f"- **torch** {torch.version}: {torch.threads} threads, {torch.cpu_capability}; a new tensor is "
        f"{torch.default_dtype} on {torch.default_device}",
        f"- **System**: {hardware.platform}, Python {hardware.python}",
        *(_write_cuda(device) for device in hardware.cuda),
        *(f"- Left out: {sentence}" for sentence in hardware.left_out),
    ]
    table = f"\n\n```\n{hardware.nvidia_smi}\n```" if hardware.nvidia_smi else ""
    return "\n".join(lines) + table


def _write_cuda(device: CudaDevice) -> str:
    facts = {
        "compute capability": device.capability,
        "memory": f"{device.memory / 2**30:.1f} GiB",
        "multiprocessors": device.multiprocessors,
        "clock": device.clock and f"{device.clock:g} MHz",
        "memory clock": device.memory_clock and f"{device.memory_clock:g} MHz",
        "memory bus": device.memory_bus and f"{device.memory_bus} bits",
        "bandwidth limit": device.bandwidth_limit and f"{device.bandwidth_limit / 1e9:.0f} GB/s",
        "link limit": device.link_limit
        and f"{device.link_limit / 1e9:.0f} GB/s (PCIe {device.link_generation} × {device.link_width})",
        "driver": device.driver,
    }
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"- **cuda:{device.index}**: {device.name}; {told}"


def write_name(name: str, place: str) -> str:
    """Return a figure's or a stage's name for people: from a disk of this machine shards are read, not fetched."""
    return "read" if (name, place) == ("fetch", "disk") else name.replace("_", " ")


def write_spread(figure: Figure) -> str:
    """Return the interquartile range in per cent of the median; of a single sample that there is only one."""
    return f"{figure.spread:.1%}" if figure.samples > 1 else "one sample"


def write_unit(value: float, unit: str) -> str:
    """Return a number with three significant digits and an SI prefix: 0.0123 s is 12.3 ms."""
    for factor, prefix in PREFIXES:
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value / 1e-9:.3g} n{unit}"
