import atexit
import fcntl
import gc
import importlib.metadata
import os
import shutil
import signal
import sys
import tempfile

# Before JAX reads them. All processes of a session, workers and the programs that tests start, share what they compile,
# down to what compiles in a tenth of a second; nothing is taken from earlier sessions or kept for later ones.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="dream_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(compiled, "programs")
    if sys.dont_write_bytecode:
        # Asked to leave nothing beside sources, every program that tests start would compile all of JAX's, in seconds.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = os.path.join(compiled, "bytecode")
        sys.dont_write_bytecode = False
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Most programs of tests run once, and compile in a third of the time so; the fixture `optimized` is for the others.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    flags = "--xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # A third less of compiling. Later versions do not know the option, and XLA ends a process for that.
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

from dream_jax.runtime import garbage

# What JAX traces is many small objects, among which looking for garbage takes a tenth of the time.
garbage.collect_seldom()

# A shell has what it starts in the background ignore Ctrl-C, and so would all programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from rich.console import Console  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def kept():
    """What is there before a file's tests is not looked through for garbage again: it grows to a second's work."""
    gc.freeze()


@pytest.fixture
def optimized():
    """What is compiled within is compiled as it is for users."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """`trained(name, *changes) -> workdir` of `tiny.tiny_config(*changes)`, trained by the first worker that asks."""
    root = tmp_path_factory.getbasetemp()
    # Every worker has a folder of its own in the session's.
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def trained(name, *changes):
        from dream_jax import commands

        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = root / f"{name}.done"
            if not done.exists():
                commands.train_and_evaluate(tiny.tiny_config(*changes), root / name / "workdir", Console(quiet=True))
                done.touch()
        return root / name / "workdir"

    return trained


@pytest.fixture(scope="session")
def tiny_workdir(trained_once):
    """The workdir of `tiny.tiny_config()`, trained and evaluated; not to be changed."""
    return trained_once("tiny")


@pytest.fixture(scope="session")
def unconditional_workdir(trained_once):
    """As `tiny_workdir`, of a model that makes pictures from nothing."""
    return trained_once("unconditional", *tiny.UNCONDITIONAL)


@pytest.fixture(scope="session")
def known_planners():
    return {}


@pytest.fixture
def planned_once(known_planners, monkeypatch):
    """Tests that upscale with one network compile each shape once; those of zero residuals and noisy ones share it."""
    from dream_jax.inference import restoring

    planner = restoring.Planner

    def make_once(model, rows, limit, tile, tick, program):
        key = (model.experiment.config.to_json(), len(rows.alpha), limit, tile)
        known_planners[key] = known_planners.get(key) or planner(model, rows, limit, tile, program=program)
        known_planners[key].model = model
        return known_planners[key]

    monkeypatch.setattr(restoring, "Planner", make_once)


# The files that take longest, begun first, so that no worker is left with one of them at the end.
_LONG = (
    "training/test_resume.py",
    "training/test_agreement.py",
    "launch/test_local.py",
    "test_hostile_inputs.py",
    "training/test_loop.py",
    "training/test_train_step.py",
    "networks/test_networks.py",
    "inference/test_generation.py",
    "launch/test_cloud.py",
    "inference/test_upscaling.py",
    "evaluation/test_measuring.py",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((i for i, name in enumerate(_LONG) if item.path.as_posix().endswith(name)), len(_LONG))

    items.sort(key=rank)
