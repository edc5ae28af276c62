"""Whole training steps and sliding-window prediction on nnU-Net's plan of LiTS: stock, GODC, and the kinds of LFAM.

Needs no more than PyTorch and dynamic_network_architectures. On a GPU the network and stock's Dice term are compiled,
in fp16 autocast with scaled gradients and cuDNN's fastest algorithms, as nnU-Net does it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import _checkout  # noqa: F401  before all that imports the package
import torch
from _counts import Counts, count
from _godc import GODCInOnePass
from _measure import TINY as TINY_NOTE
from _measure import parse_arguments, peak_memory_mib, quartiles, save_report, stem, synchronise, time_ms
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
    prediction_memory_mib: float | None = None


def make(name: str, sizes: Sizes, device: torch.device, compiler: str | None) -> Candidate:
    """Builds, compiles and warms up one candidate."""
    torch.manual_seed(0)
    model: nn.Module = network(sizes.features)
    config = CANDIDATES[name]
    if config is not None:
        align_skips(model, config)
        for parameter in model.decoder.alignment.offset_parameters():  # type: ignore[union-attr, operator]
            nn.init.normal_(parameter, std=OFFSETS)
    both = GODCInOnePass() if name == GODC else DiceAndCrossEntropy(SoftDice(), compiler)
    loss = DeepSupervision(both, len(sizes.features) - 1)
    if name == GODC and compiler is not None:
        loss.compile(backend=compiler)
    data = batch(sizes.patch, BATCH_SIZE, len(sizes.features), device)
    step = TrainingStep(model, loss, data, compiler)
    started = time.perf_counter()
    step()
    synchronise(device)
    first_step_s = time.perf_counter() - started
    step()
    memory = peak_memory_mib(step, device) + step.static_bytes() / 2**20
    print(f"{name}: first step {first_step_s:.1f} s, {memory:.0f} MiB", flush=True)
    return Candidate(name, model, step, first_step_s, memory)


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
    # on a GPU the time of a kernel is told of the kernel and of the operator that started it
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    everything = sum(getattr(event, own) for event in events if event.device_type == kind) / 1e3
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


class Run:
    """All candidates, measured in turn; the results are written after each of them and after every round.

    A candidate that fails, for want of memory say, is left out and named in the results.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.sizes = TINY if arguments.tiny else FULL
        self.compiler = "inductor" if self.device.type == "cuda" else "aot_eager" if arguments.tiny else None
        self.rates = bandwidth(self.device), matrix_rate(self.device)
        self.candidates: list[Candidate] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []
        self.started = time.perf_counter()

    def measure(self) -> None:
        self._make_all()
        for done in range(ROUNDS):
            if done >= 5 and self._share_of_time() > 0.85:
                break
            for candidate in self.candidates:
                candidate.step_ms.append(time_ms(candidate.step, self.device))
            self.write()
        for candidate in self.candidates:
            candidate.parts_ms = time_parts(candidate.step, self.device)
        self.write()
        self._predict()
        self.write()

    def write(self) -> None:
        itemsize = 2 if self.device.type == "cuda" else 4
        measurements = [
            {key: value for key, value in vars(candidate).items() if key not in ("model", "step")}
            | {
                "counts": {name: asdict(counts) for name, counts in counts_of(config, self.sizes, itemsize).items()}
                if config
                else {}
            }
            for candidate in self.candidates
            for config in [CANDIDATES[candidate.name]]
        ]
        patch, volume = (" x ".join(map(str, size)) for size in (self.sizes.patch, self.sizes.volume))
        bytes_per_s, flop_per_s = self.rates
        save_report(
            "training_step",
            f"Training steps of nnU-Net's network on patches of {patch}, batch {BATCH_SIZE}, and prediction of "
            f"{volume} voxels; median [quartiles] of interleaved rounds.",
            table(self.candidates, self.sizes, self.rates, itemsize),
            measurements,
            self.arguments,
            [
                f"measured in the same run: {bytes_per_s / 1e9:.0f} GB/s of memory, {flop_per_s / 1e12:.3g} TFLOP/s of "
                "products",
                f"offset predictors drawn with standard deviation {OFFSETS}, for offsets of about a voxel",
                *([TINY_NOTE] if self.arguments.tiny else []),
                *([f"left out for want of time: {', '.join(self.left_out)}"] if self.left_out else []),
                *self.failed,
            ],
        )

    def _make_all(self) -> None:
        """The candidates in their order, as long as there is time to compile another one."""
        longest = 0.0
        for name in CANDIDATES:
            if name != STOCK and self._share_of_time(longest) > 0.6:
                self.left_out.append(name)
                print(f"{name}: left out, the time does not suffice", flush=True)
                continue
            try:
                candidate = make(name, self.sizes, self.device, self.compiler)
            except Exception as error:  # of the compiler or the GPU's memory
                self._fail(name, error)
                continue
            longest = max(longest, 1.2 * candidate.first_step_s)
            self.candidates.append(candidate)
            self.write()

    def _predict(self) -> None:
        volume = torch.randn((1, 1, *self.sizes.volume), device=self.device)
        predictions = []
        for candidate in self.candidates:
            candidate.model.eval()
            # deep supervision off, the network gives one tensor, (1, C, ...)
            candidate.model.decoder.deep_supervision = False  # type: ignore[union-attr]
            predicted = partial(predict, candidate.model, volume, self.sizes.patch)
            weights = sum(parameter.nbytes for parameter in candidate.model.parameters()) / 2**20
            try:
                predicted()
                candidate.prediction_memory_mib = peak_memory_mib(predicted, self.device) + weights
            except Exception as error:
                self._fail(f"prediction, {candidate.name}", error)
            else:
                predictions.append((candidate, predicted))
        for done in range(ROUNDS):
            if done >= 5 and self._share_of_time() > 1:
                break
            for candidate, predicted in predictions:
                candidate.prediction_ms.append(time_ms(predicted, self.device))
            self.write()

    def _share_of_time(self, and_seconds: float = 0.0) -> float:
        """Of the time that there is, how much has been used, or will have been after so many seconds."""
        return (time.perf_counter() + and_seconds - self.started) / (60 * self.arguments.minutes)

    def _fail(self, what: str, error: Exception) -> None:
        traceback.print_exception(error)
        reason = str(error).strip().partition("\n")[0]
        self.failed.append(f"failed: {what} ({type(error).__name__}: {reason})")


def table(candidates: Sequence[Candidate], sizes: Sizes, rates: tuple[float, float], itemsize: int) -> list[str]:
    lines = [
        "| candidate | step in ms | to stock | peak memory in MiB | to stock | prediction in ms | to stock "
        "| its memory in MiB | to stock | first step in s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    stock = next((candidate for candidate in candidates if candidate.name == STOCK), None)
    for candidate in candidates:
        cells = [candidate.name]
        for name in ("step_ms", "peak_memory_mib", "prediction_ms", "prediction_memory_mib"):
            value, to_stock = getattr(candidate, name), None if stock is None else getattr(stock, name)
            cells += [_shown(value), _ratio(value, to_stock)]
        lines.append(f"| {' | '.join(cells)} | {candidate.first_step_s:.1f} |")
    candidates = [candidate for candidate in candidates if candidate.parts_ms]
    if not candidates:
        return lines
    parts = list(candidates[0].parts_ms)
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


def _shown(value: list[float] | float | None) -> str:
    """Median [quartiles] of times, or a number; a dash for what was not measured."""
    if isinstance(value, float):
        return f"{value:.0f}"
    if value is None or len(value) < 2:
        return "-"
    first, median, third = quartiles(value)
    return f"{median:.1f} [{first:.1f}, {third:.1f}]"


def _ratio(value: list[float] | float | None, stock: list[float] | float | None) -> str:
    """To stock's, of medians."""
    if value is None or stock is None or "-" in (_shown(value), _shown(stock)):
        return "-"
    of, to = (entry if isinstance(entry, float) else quartiles(entry)[1] for entry in (value, stock))
    return f"{of / to:.2f}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=5.0, help="time for all of it, about (default: 5)")


def main() -> int:
    arguments = parse_arguments(__doc__, add_options)
    if torch.device(arguments.device).type == "cuda":
        torch.backends.cudnn.benchmark = True
        # dynamo counts what it compiles per function, and all candidates share the network's functions
        torch._dynamo.config.recompile_limit = 64
    gc.collect()
    run = Run(arguments)
    run.measure()
    print(f"Written: {arguments.out / stem('training_step', arguments)}.json and .md")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
