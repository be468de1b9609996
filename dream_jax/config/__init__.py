"""Configs: one table of keys, the command line, checks, and the records of runs."""

from dream_jax.config.checks import validate
from dream_jax.config.command_line import load, override
from dream_jax.config.keys import KEYS, defaults, flatten
from dream_jax.config.records import differences, from_record, read, save

__all__ = [
    "KEYS",
    "defaults",
    "differences",
    "flatten",
    "from_record",
    "load",
    "override",
    "read",
    "save",
    "validate",
]
