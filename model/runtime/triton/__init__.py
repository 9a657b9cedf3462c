"""Kernels in Triton, each beside the plain PyTorch form that defines its result, and the decision which of them runs.

Only checked.py is imported with the pack. The other modules import Triton: at the first use of their kernel on a card.
"""
