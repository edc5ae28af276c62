"""Compiling and launching kernels in numba and Triton, for the operations and the losses alike."""
