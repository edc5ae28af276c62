"""GODC and cross-entropy, one after the other and in one pass, against nnU-Net's soft Dice and cross-entropy.

On the CPU of one output, as nnU-Net runs it there; on a GPU of all outputs of deep supervision, in fp16 autocast, and
compiled as the trainers do it besides. Needs no more than PyTorch.
"""

from __future__ import annotations

import sys
from functools import partial

import _checkout  # noqa: F401  before all that imports the package
import torch
from _godc import GODCInOnePass, godc
from _measure import Comparison, Step, forward_backward, parse_arguments
from _stock import DeepSupervision, DiceAndCrossEntropy, SoftDice
from torch import Tensor, nn

CPU_SHAPES = [(2, 3, 96, 96, 96), (2, 14, 64, 64, 64)]
GPU_SHAPES = [(2, 3, 128, 128, 128), (2, 105, 128, 128, 128)]
TINY_SHAPES = [(2, 3, 16, 16, 16)]  # as on a GPU, but for what only a GPU can
OUTPUTS = 5  # of deep supervision, each half as large as the one before

STOCK = "nnU-Net's Dice + cross-entropy"
PLAIN = "GODC + cross-entropy, one after the other"
IN_ONE_PASS = "GODC + cross-entropy, in one pass"


def losses() -> dict[str, nn.Module]:
    """What nnU-Net runs on the CPU, and ours."""
    return {
        STOCK: DiceAndCrossEntropy(SoftDice(batch_dice=False)),
        PLAIN: DiceAndCrossEntropy(godc()),
        IN_ONE_PASS: GODCInOnePass(),
    }


def supervised_losses(compiler: str) -> dict[str, nn.Module]:
    """With deep supervision, as they are and compiled: nnU-Net compiles the Dice term alone, our trainers all of it."""
    wrap = partial(DeepSupervision, outputs=OUTPUTS)
    in_one_pass = wrap(GODCInOnePass())
    in_one_pass.compile(backend=compiler)
    return {name: wrap(loss) for name, loss in losses().items()} | {
        f"{STOCK}, compiled": wrap(DiceAndCrossEntropy(SoftDice(batch_dice=False), compiler)),
        f"{PLAIN}, compiled": wrap(DiceAndCrossEntropy(godc(), compiler)),
        f"{IN_ONE_PASS}, compiled": in_one_pass,
    }


def random_batch(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    logits = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), device=device)
    return logits, labels.float()  # nnU-Net's loader gives floats


def steps(shape: tuple[int, ...], device: torch.device) -> dict[str, Step]:
    """On the CPU."""
    logits, labels = random_batch(shape, device, torch.float32)
    return {name: forward_backward(partial(loss, logits, labels), [logits]) for name, loss in losses().items()}


def supervised_steps(shape: tuple[int, ...], device: torch.device, compiler: str) -> dict[str, Step]:
    """On a GPU."""
    levels = [(*shape[:2], *(extent >> level for extent in shape[2:])) for level in range(OUTPUTS)]
    batches = [random_batch(level, device, torch.float16) for level in levels]
    outputs, targets = [logits for logits, _ in batches], [labels for _, labels in batches]

    def under_autocast(loss: nn.Module) -> Tensor:
        with torch.autocast(device.type, dtype=torch.float16):
            value: Tensor = loss(outputs, targets)
        return value

    return {
        # the coarsest output does not count
        name: forward_backward(partial(under_autocast, loss), outputs[:-1])
        for name, loss in supervised_losses(compiler).items()
    }


def main() -> int:
    arguments = parse_arguments(__doc__)
    device = torch.device(arguments.device)
    as_on_a_gpu = arguments.tiny or device.type == "cuda"
    shapes = TINY_SHAPES if arguments.tiny else GPU_SHAPES if as_on_a_gpu else CPU_SHAPES
    comparison = Comparison("loss", arguments)
    for shape in shapes:
        torch.compiler.reset()
        torch.manual_seed(0)
        compiler = "inductor" if device.type == "cuda" else "aot_eager"
        candidates = supervised_steps(shape, device, compiler) if as_on_a_gpu else steps(shape, device)
        comparison.measure(" x ".join(map(str, shape)), candidates, arguments.seconds)
    return comparison.finish()


if __name__ == "__main__":
    sys.exit(main())
