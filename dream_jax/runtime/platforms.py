"""Whether the devices that a person asked for are there."""

import os

from dream_jax.errors import UserError, shown

VARIABLE = "JAX_PLATFORMS"


def check() -> None:
    """Raises UserError, in one line, where JAX_PLATFORMS names devices that cannot be had; JAX shows its own inside."""
    asked = os.environ.get(VARIABLE)
    if asked in (None, "", "cpu"):
        return
    import jax

    try:
        jax.devices()
    # For CUDA without its plugin it is an AssertionError without a word.
    except Exception as error:
        reason = shown(error).partition(" (set ")[0][:300] or "its plugin is not installed"
        mend = f"install jax for it, or unset {VARIABLE}"
        raise UserError(f"{VARIABLE}={shown(asked)}: there is no such device here ({reason}); {mend}") from error
