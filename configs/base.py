"""The defaults of all keys; the table that holds them is dream_jax/config/keys.py, and docs/keys.md shows it.

An experiment is a thin file over these defaults: it changes what it needs. Any key can be given on the command line,
for example `--config.objective.p=None` or `--config.evaluation.steps=1,10`.
"""

from dream_jax.config import keys


def get_config():
    return keys.defaults()
