"""Launching a Triton kernel, compiling it ahead of time for a GPU that is not there, and whether there is one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

CAPABILITY = (8, 0)  # Ampere, the oldest with products in bfloat16
WARP = 32  # threads


def why_unusable(attempt: Callable[[], None], consequence: str, compiler: str = "triton") -> str | None:
    """None where a GPU runs the kernels that the attempt launches, else the reason; a failure of it is warned about."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if find_spec("triton") is None:
        return "triton is not installed; PyTorch for CUDA on Linux brings it along"
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0 (Ampere) or newer"
    try:
        attempt()
    except Exception as error:  # Triton raises its own, the C compiler's or the driver's
        first_line = str(error).strip().partition("\n")[0]
        reason = f"{compiler} cannot compile here ({type(error).__name__}: {first_line})"
        warnings.warn(f"nnunet-godc: {reason}; {consequence}", RuntimeWarning, stacklevel=3)
        return reason
    return None


@dataclass(frozen=True)
class Launch:
    """One kernel with all that it takes; run as it is, or compiled ahead of time where there is no GPU.

    Attributes:
        module: that the kernel is in, imported when it is needed.
        kernel: its name.
        grid: programs along up to three axes.
        arguments: tensors, numbers, tuples of numbers, None.
        constants: that it is compiled for.
        warps: of a program.
        registers: that a thread may have; None leaves it to the compiler.
    """

    module: str
    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    registers: int | None = None

    def run(self) -> None:
        kernel = getattr(import_module(self.module), self.kernel)
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[self.grid](**self.arguments, **self.constants, **self._options())

    def compile(self, capability: int) -> Any:
        """Compiles the kernel for GPUs of a compute capability (80, 90), as `run` would there; needs no GPU.

        Returns:
            Triton's CompiledKernel: its `asm` holds the code in every language that it went through.
        """
        from triton import compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        kernel = getattr(import_module(self.module), self.kernel)
        signature: dict[str, Any] = {}
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], list[list[str | int]]] = {}

        def kind_of(value: Any, path: tuple[int, ...], constant: bool) -> Any:
            if isinstance(value, tuple) and not constant:
                return tuple(kind_of(entry, (*path, index), False) for index, entry in enumerate(value))
            # as at a launch: numbers that are 1 are compiled in, multiples of 16 are promised
            if constant or value is None or (isinstance(value, int) and value == 1):
                constants[path] = value
                return "constexpr"
            if isinstance(value, Tensor) or value % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            if isinstance(value, Tensor):
                return _POINTERS[value.dtype]
            return "i32" if value < 2**31 else "i64"

        for index, name in enumerate(kernel.arg_names):
            constant = name in self.constants
            value = self.constants[name] if constant else self.arguments[name]
            signature[name] = kind_of(value, (index,), constant)
        source = ASTSource(kernel, signature, constants, attributes)
        return compile(source, target=GPUTarget("cuda", capability, WARP), options=self._options())

    def _options(self) -> dict[str, Any]:
        # One stage: what is gathered goes through registers, which Triton's pipelines do not serve.
        options = {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": True}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
