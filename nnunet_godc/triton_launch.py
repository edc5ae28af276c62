"""Launching a Triton kernel, or compiling it ahead of time for a GPU that is not there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

WARP = 32  # threads


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
    """

    module: str
    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int

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
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": True}


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
