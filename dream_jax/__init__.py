"""DREAM (arXiv 2312.00210) for diffusion models in JAX."""

__version__ = "0.1.0"
