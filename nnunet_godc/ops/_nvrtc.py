"""CUDA C++ compiled at run time by the NVRTC that PyTorch brings along, and launched on PyTorch's current stream.

`torch.cuda._compile_kernel` does the same, but not in all versions of PyTorch, not on every thread, and takes neither
structures nor 64-bit numbers as arguments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

_MAX_SHARED_MEMORY = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@cache
def nvrtc() -> ctypes.CDLL:
    """NVRTC of PyTorch's CUDA version.

    Raises:
        OSError: where there is none.
    """
    version = (torch.version.cuda or "").partition(".")[0]
    if not version:
        raise OSError("torch is built without CUDA")
    name = f"libnvrtc.so.{version if version != '11' else '11.2'}"
    packages = Path(torch.__file__).parents[1] / "nvidia"
    # as wheels of CUDA 11, 12 and 13 have it; else where the system has it
    for path in [*sorted(packages.glob(f"*/lib/{name}")), name]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    raise OSError(f"there is no {name}; PyTorch for CUDA on Linux brings it along")


def compile(source: str, name: str, capability: int, constants: dict[str, int]) -> bytes:
    """Machine code of a CUDA C++ source for GPUs of a compute capability (80, 90); needs no GPU.

    Raises:
        OSError: where there is no NVRTC.
        RuntimeError: with the compiler's messages.
    """
    library = nvrtc()
    program = ctypes.c_void_p()
    texts = [f"--gpu-architecture=sm_{capability}", "--std=c++17"]
    texts += [f"-D{key}={int(value)}" for key, value in constants.items()]
    options = (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        if library.nvrtcCompileProgram(program, len(texts), options):
            log = _read(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
            raise RuntimeError(f"NVRTC cannot compile {name}: {log.decode(errors='replace').strip(chr(0))}")
        return _read(program, library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, size: Callable[..., int], content: Callable[..., int]) -> bytes:
    length = ctypes.c_size_t()
    _check(size(program, ctypes.byref(length)))
    text = ctypes.create_string_buffer(length.value)
    _check(content(program, text))
    return text.raw


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC failed with status {status}")


class Kernel:
    """A kernel on a GPU, whose context is the current one.

    Args:
        binary: as `compile` returns it.
        name: of the kernel, declared ``extern "C"``.
        shared_bytes: of dynamic shared memory that it is launched with.
    """

    def __init__(self, binary: bytes, name: str, shared_bytes: int) -> None:
        self._driver = _driver()
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._shared_bytes = shared_bytes
        self._call("cuModuleLoadData", ctypes.byref(self._module), binary)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, name.encode())
        self._call("cuFuncSetAttribute", self._function, _SHARED_MEMORY, shared_bytes)

    def launch(self, grid: tuple[int, int, int], threads: int, argument: ctypes.Structure) -> None:
        """Runs it on PyTorch's current stream with one argument, given by value."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        self._call("cuLaunchKernel", self._function, *grid, threads, 1, 1, self._shared_bytes, stream, parameters, None)

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status:
            message = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(message))
            raise RuntimeError(f"{function} failed: {(message.value or b'unknown error').decode()}")


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have on a GPU."""
    handle, value = ctypes.c_int(), ctypes.c_int()
    driver = _driver()
    if driver.cuDeviceGet(ctypes.byref(handle), device.index) or driver.cuDeviceGetAttribute(
        ctypes.byref(value), _MAX_SHARED_MEMORY, handle
    ):
        raise RuntimeError(f"the CUDA driver does not tell the shared memory of {device}")
    return value.value


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
