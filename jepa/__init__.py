"""Joint-embedding predictive architectures in JAX, from a laptop's CPU to a TPU pod."""

__version__ = "0.1.0"
