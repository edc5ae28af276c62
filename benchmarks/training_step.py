"""Whole training steps and sliding-window prediction on nnU-Net's plan of LiTS: stock, GODC, and the kinds of LFAM.

Needs no more than PyTorch and dynamic_network_architectures. On a GPU the network and stock's Dice term are compiled,
in fp16 autocast with scaled gradients, as nnU-Net does it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from _counts import Counts, count
from _godc import GODCInOnePass
from _measure import parse_arguments, peak_memory_mib, quartiles, synchronise, time_ms, write_report
from _stock import (
    BATCH_SIZE,
    FEATURES,
    PATCH_SIZE,
    DeepSupervision,
    DiceAndCrossEntropy,
    SoftDice,
    TrainingStep,
    batch,
    network,
)
from torch import Tensor, nn

from nnunet_godc.alignment import LFAMConfig, align_skips

STOCK, GODC = "stock nnU-Net", "GODC"
# In the order of interest: where the time does not suffice, the last ones are left out.
CANDIDATES: dict[str, LFAMConfig | None] = {
    STOCK: None,
    "LFAM, all skips": LFAMConfig(),
    "LFAM Lite: skips 2 and deeper, C/4": LFAMConfig(first_level=1, reduction=4),
    "LFAM, skips 2 and deeper": LFAMConfig(first_level=1),
    GODC: None,
    "LFAM, all skips, finest in-plane": LFAMConfig(finest="in-plane"),
    "LFAM, all skips, C/4": LFAMConfig(reduction=4),
    "LFAM, all skips, checkpointed": LFAMConfig(checkpoint=True),
}
OFFSETS = 0.02  # standard deviation of the predictors' weights: offsets of about a voxel, where untrained ones are zero
ROUNDS = 30


@dataclass(frozen=True)
class Sizes:
    """What the networks see; the small ones are for trying the script out."""

    features: Sequence[int]
    patch: tuple[int, int, int]
    volume: tuple[int, int, int]


FULL = Sizes(FEATURES, PATCH_SIZE, (192, 192, 192))
TINY = Sizes((4, 8, 16), (16, 16, 16), (24, 24, 24))


@dataclass
class Candidate:
    """A network with its training step, and what was measured of it."""

    name: str
    model: nn.Module
    step: TrainingStep
    first_step_s: float
    peak_memory_mib: float
    step_ms: list[float] = field(default_factory=list)
    parts_ms: dict[str, float] = field(default_factory=dict)
    prediction_ms: list[float] = field(default_factory=list)
    prediction_memory_mib: float = math.nan


def make(name: str, sizes: Sizes, device: torch.device) -> Candidate:
    """Builds, compiles and warms up one candidate."""
    torch.manual_seed(0)
    model: nn.Module = network(sizes.features)
    config = CANDIDATES[name]
    if config is not None:
        align_skips(model, config)
        for parameter in model.decoder.alignment.offset_parameters():  # type: ignore[union-attr, operator]
            nn.init.normal_(parameter, std=OFFSETS)
    compiled = device.type == "cuda"
    both = GODCInOnePass() if name == GODC else DiceAndCrossEntropy(SoftDice(), compiled)
    loss = DeepSupervision(both, len(sizes.features) - 1)
    if name == GODC and compiled:
        loss.compile()
    data = batch(sizes.patch, BATCH_SIZE, len(sizes.features), device)
    step = TrainingStep(model, loss, data, compiled)
    started = time.perf_counter()
    step()
    synchronise(device)
    first_step_s = time.perf_counter() - started
    step()
    memory = peak_memory_mib(step, device) + step.static_bytes() / 2**20
    print(f"{name}: first step {first_step_s:.1f} s, {memory:.0f} MiB", flush=True)
    return Candidate(name, model, step, first_step_s, memory)


def make_all(sizes: Sizes, device: torch.device, until: float) -> Iterator[Candidate]:
    """The candidates in their order, as long as there is time to compile another one."""
    longest = 0.0
    for name in CANDIDATES:
        if name != STOCK and time.perf_counter() + longest > until:
            print(f"{name}: left out, the time does not suffice", flush=True)
            continue
        candidate = make(name, sizes, device)
        longest = max(longest, 1.2 * candidate.first_step_s)
        yield candidate


def time_parts(step: TrainingStep, device: torch.device) -> dict[str, float]:
    """The device's time in one step, by the operators that it was spent in; in milliseconds."""
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        synchronise(device)
    events = profile.key_averages()
    own, total = (
        ("self_device_time_total", "device_time_total") if on_gpu else ("self_cpu_time_total", "cpu_time_total")
    )
    of_operator = {event.key: getattr(event, total) / 1e3 for event in events}
    parts = {
        "deform_conv, forward": of_operator.get("nnunet_godc::deform_conv", 0.0),
        "deform_conv, backward": of_operator.get("nnunet_godc::deform_conv_backward", 0.0),
        "convolutions, forward": of_operator.get("aten::convolution", 0.0),
        "convolutions, backward": of_operator.get("aten::convolution_backward", 0.0),
    }
    everything = sum(getattr(event, own) for event in events) / 1e3
    return parts | {"everything else": everything - sum(parts.values())}


def predict(model: nn.Module, volume: Tensor, patch: Sequence[int]) -> Tensor:
    """Weighted sum of the logits of half-overlapping windows, without mirroring; nothing compiled, as in nnU-Net."""
    device = volume.device
    axes = [torch.linspace(-1, 1, size, device=device) for size in patch]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    weight = torch.exp(-8 * distance)  # a standard deviation of an eighth of the patch
    starts = [range(0, size - window + 1, window // 2) for size, window in zip(volume.shape[2:], patch, strict=True)]
    total: Any = None
    with torch.inference_mode(), torch.autocast("cuda", enabled=device.type == "cuda"):
        for corner in itertools.product(*starts):
            window = (..., *(slice(start, start + size) for start, size in zip(corner, patch, strict=True)))
            logits = model(volume[window])[0]
            if total is None:
                total = logits.new_zeros((logits.shape[0], *volume.shape[2:]))
            total[window] += logits * weight
    return total


def counts_of(config: LFAMConfig, sizes: Sizes, itemsize: int) -> dict[str, Counts]:
    """Counts of all deformable convolutions of one training step, forward and backward."""
    sums: dict[str, Counts] = {}
    first = config.first_level + (config.finest == "off")
    for level in range(first, len(sizes.features) - 1):
        kernel = (1, 3, 3) if config.finest == "in-plane" and level == first else (3, 3, 3)
        size = tuple(extent >> level for extent in sizes.patch)
        channels = sizes.features[level] // config.reduction
        displaced = 2 if kernel[0] == 1 else 3
        for name, counts in count(BATCH_SIZE, channels, size, kernel, displaced, itemsize).items():
            sums[name] = sums[name] + counts if name in sums else counts
    return sums


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy within the device's memory reads and writes."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()
    return 2 * source.nbytes / (1e-3 * min(time_ms(copy, device) for _ in range(10)))


def matrix_rate(device: torch.device) -> float:
    """FLOP per second of a large product, of 16-bit numbers on a GPU."""
    size, dtype = (8192, torch.float16) if device.type == "cuda" else (1024, torch.float32)
    left = torch.randn(size, size, device=device).to(dtype)
    product = partial(torch.mm, left, left)
    product()
    return 2 * size**3 / (1e-3 * min(time_ms(product, device) for _ in range(10)))


def measure(sizes: Sizes, device: torch.device, minutes: float) -> list[Candidate]:
    start = time.perf_counter()
    end = start + 60 * minutes
    if device.type == "cuda":
        # dynamo counts what it compiles per function, and all candidates share the network's functions
        torch._dynamo.config.recompile_limit = 64
    candidates = list(make_all(sizes, device, until=start + 0.6 * 60 * minutes))
    for done in range(ROUNDS):
        if done >= 5 and time.perf_counter() > start + 0.85 * 60 * minutes:
            break
        for candidate in candidates:
            candidate.step_ms.append(time_ms(candidate.step, device))
    for candidate in candidates:
        candidate.parts_ms = time_parts(candidate.step, device)

    volume = torch.randn((1, 1, *sizes.volume), device=device)
    steps = []
    for candidate in candidates:
        candidate.model.eval()
        candidate.model.decoder.deep_supervision = False  # type: ignore[union-attr]
        predicted = partial(predict, candidate.model, volume, sizes.patch)
        # deep supervision off, the network gives one tensor, (1, C, ...)
        steps.append(predicted)
        predicted()
        weights = sum(parameter.nbytes for parameter in candidate.model.parameters()) / 2**20
        candidate.prediction_memory_mib = peak_memory_mib(predicted, device) + weights
    for done in range(ROUNDS):
        if done >= 5 and time.perf_counter() > end:
            break
        for candidate, predicted in zip(candidates, steps, strict=True):
            candidate.prediction_ms.append(time_ms(predicted, device))
    return candidates


def table(candidates: Sequence[Candidate], sizes: Sizes, rates: tuple[float, float], itemsize: int) -> list[str]:
    lines = [
        "| candidate | step in ms | to stock | peak memory in MiB | to stock | prediction in ms | to stock "
        "| its memory in MiB | to stock | first step in s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    stock = candidates[0]
    for candidate in candidates:
        step, prediction = quartiles(candidate.step_ms), quartiles(candidate.prediction_ms)
        ratios = [
            step[1] / quartiles(stock.step_ms)[1],
            candidate.peak_memory_mib / stock.peak_memory_mib,
            prediction[1] / quartiles(stock.prediction_ms)[1],
            candidate.prediction_memory_mib / stock.prediction_memory_mib,
        ]
        lines.append(
            f"| {candidate.name} | {spread(step)} | {ratios[0]:.2f} "
            f"| {candidate.peak_memory_mib:.0f} | {ratios[1]:.2f} "
            f"| {spread(prediction)} | {ratios[2]:.2f} "
            f"| {candidate.prediction_memory_mib:.0f} | {ratios[3]:.2f} | {candidate.first_step_s:.1f} |"
        )
    parts = list(stock.parts_ms)
    lines += ["", f"| device time of one step in ms | {' | '.join(parts)} |", f"| --- |{' --- |' * len(parts)}"]
    lines += [
        f"| {candidate.name} | {' | '.join(f'{candidate.parts_ms[part]:.2f}' for part in parts)} |"
        for candidate in candidates
    ]
    lines += [
        "",
        "| deform_conv of one step | rows gathered in 10^6 | scattered in 10^6 | GB gathered | GB scattered "
        "| GB of memory, at least | TFLOP of products | least time in ms | measured, multiple of it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for candidate in candidates:
        config = CANDIDATES[candidate.name]
        if config is None:
            continue
        for name, counts in counts_of(config, sizes, itemsize).items():
            least = counts.roofline_ms(*rates)
            lines.append(
                f"| {candidate.name}, {name} | {counts.gathered_rows / 1e6:.1f} | {counts.scattered_rows / 1e6:.1f} "
                f"| {counts.gathered_bytes / 1e9:.2f} | {counts.scattered_bytes / 1e9:.2f} "
                f"| {counts.memory_bytes / 1e9:.3f} | {counts.matrix_flops / 1e12:.3f} | {least:.3f} "
                f"| {candidate.parts_ms[f'deform_conv, {name}'] / least:.1f} |"
            )
    return lines


def spread(entries: tuple[float, float, float]) -> str:
    return f"{entries[1]:.1f} [{entries[0]:.1f}, {entries[2]:.1f}]"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=5.0, help="time for all of it, about (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the script: no measurement")


def main() -> None:
    arguments = parse_arguments(__doc__, add_options)
    device = torch.device(arguments.device)
    sizes = TINY if arguments.tiny else FULL
    rates = bandwidth(device), matrix_rate(device)
    itemsize = 2 if device.type == "cuda" else 4
    gc.collect()
    candidates = measure(sizes, device, arguments.minutes)
    missing = [name for name in CANDIDATES if name not in {candidate.name for candidate in candidates}]
    measurements = [
        {key: value for key, value in vars(candidate).items() if key not in ("model", "step")}
        | {
            "counts": {name: asdict(counts) for name, counts in counts_of(config, sizes, itemsize).items()}
            if config
            else {}
        }
        for candidate in candidates
        for config in [CANDIDATES[candidate.name]]
    ]
    write_report(
        "training_step",
        f"Training steps of nnU-Net's network on patches of {' x '.join(map(str, sizes.patch))}, batch {BATCH_SIZE}, "
        f"and prediction of {' x '.join(map(str, sizes.volume))} voxels; median [quartiles] of interleaved rounds.",
        table(candidates, sizes, rates, itemsize),
        measurements,
        arguments,
        [
            f"measured in the same run: {rates[0] / 1e9:.0f} GB/s of memory, {rates[1] / 1e12:.3g} TFLOP/s of products",
            f"offset predictors drawn with standard deviation {OFFSETS}, for offsets of about a voxel",
            *(["a tiny network, to try the script: this is no measurement"] if arguments.tiny else []),
            *([f"left out for want of time: {', '.join(missing)}"] if missing else []),
        ],
    )


if __name__ == "__main__":
    main()
