"""Gradient-optimised Dice loss (GODC) and lateral feature alignment (LFAM) for nnU-Net.

Importing this package loads no torch: ask its modules for what they hold.
"""

__version__ = "0.1.0"
