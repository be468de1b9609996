"""The folder of what can be made or downloaded again: prepared pictures, compiled programs, metrics' weights."""

import os
from pathlib import Path


def root() -> Path:
    """DREAM_JAX_CACHE, else XDG_CACHE_HOME/dream_jax, else ~/.cache/dream_jax."""
    chosen = os.environ.get("DREAM_JAX_CACHE")
    if not chosen:
        chosen = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dream_jax"
    return Path(chosen).expanduser()
