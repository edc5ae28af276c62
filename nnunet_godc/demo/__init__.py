"""The demo: phantoms, nnU-Net's own commands with our trainer, a table and pictures. Loads no torch itself."""

from nnunet_godc.demo.run import run_demo

__all__ = ["run_demo"]
