import os
import signal
import tempfile

# Before JAX reads it: what tests compile is neither taken from earlier sessions nor kept for later ones.
_compiled = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name

# A shell has what it starts in the background ignore Ctrl-C, and so would all programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from rich.console import Console  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_workdir(tmp_path_factory):
    """The workdir of `tiny.tiny_config()`, trained and evaluated; not to be changed."""
    from dream_jax import commands

    workdir = tmp_path_factory.mktemp("tiny") / "workdir"
    with tiny.quick_compiles():
        commands.train_and_evaluate(tiny.tiny_config(), workdir, Console(quiet=True))
    return workdir


@pytest.fixture(scope="session")
def unconditional_workdir(tmp_path_factory):
    """As `tiny_workdir`, of a model that makes pictures from nothing."""
    from dream_jax import commands

    workdir = tmp_path_factory.mktemp("unconditional") / "workdir"
    changes = "task.name=unconditional", "task.residual=False", "objective.kind=v", "schedule.num_steps=100"
    with tiny.quick_compiles():
        commands.train_and_evaluate(tiny.tiny_config(*changes), workdir, Console(quiet=True))
    return workdir
