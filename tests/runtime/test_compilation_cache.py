import os
import subprocess
import sys

import pytest
import tiny

from dream_jax.runtime import compilation_cache

# Compiles a program for long enough that it is kept, and says what the cache says.
SCRIPT = """
import sys, time
import jax, jax.numpy as jnp
from dream_jax.runtime import compilation_cache
compilation_cache.LEAST, compilation_cache.LONG = 0.0, {long}
compilation_cache.use(lambda message: print("told:", message))
with compilation_cache.compiling("the step", lambda message: print("told:", message, flush=True)) as ran:
    @jax.jit
    def step(x):
        time.sleep({tracing})
        for _ in range(5):
            x = jnp.sin(x) @ x
        return x
    print("result", float(step(jnp.ones((8, 8)) / 8).sum()))
    print("after", ran())
"""


def run(root, tracing=0.0, long=60.0, **environment):
    environment = dict(os.environ, DREAM_JAX_CACHE=str(root), **environment)
    if "JAX_COMPILATION_CACHE_DIR" not in environment or environment["JAX_COMPILATION_CACHE_DIR"] == "unset":
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", SCRIPT.format(tracing=tracing, long=long)]
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_second_start_takes_the_program_from_the_cache_with_the_same_result(tmp_path):
    first = run(tmp_path, tracing=0.5, long=0.1, JAX_COMPILATION_CACHE_DIR="unset")
    assert first[0] == "told: preparing the step: where it has to be compiled, that can take minutes; " + (
        "the next start of this config takes it from the cache"
    )
    assert first[2].endswith("most of it compiling")
    (kept,) = (tmp_path / "compiled").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700 and any(kept.iterdir())
    second = run(tmp_path, tracing=0.5, JAX_COMPILATION_CACHE_DIR="unset")
    assert second[0] == first[1] and second[1].endswith("its program from the cache")


def test_it_is_switched_off_and_put_elsewhere_by_jax_own_variable(tmp_path):
    for _ in range(2):
        said = run(tmp_path, tracing=0.5, long=0.1, JAX_COMPILATION_CACHE_DIR="")
        assert said[0] == "told: preparing the step: where it has to be compiled, that can take minutes"
        assert said[2].endswith("most of it compiling")
    other = tmp_path / "other"
    run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(other), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert any(other.iterdir()) and not (tmp_path / "compiled").exists()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    said = run(tmp_path / "file", JAX_COMPILATION_CACHE_DIR="unset")
    assert said[0].startswith(f"told: {tmp_path / 'file' / 'compiled'}") and "compiles anew" in said[0]
    assert said[-1].endswith("most of it compiling")


def test_the_folder_is_one_a_host_and_processor(monkeypatch, tmp_path):
    monkeypatch.delenv("DREAM_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compilation_cache.folder()
    assert here.parent == tmp_path / "dream_jax" / "compiled"
    monkeypatch.setattr(compilation_cache.socket, "gethostname", lambda: "another")
    assert compilation_cache.folder() != here
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "processor", lambda: "flags: fewer")
    assert compilation_cache.folder() != here


def test_what_was_not_used_for_longest_goes_first(monkeypatch, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}-cache").write_bytes(b"x" * 10)
        os.utime(tmp_path / f"{number}-cache", (100 - number, 0))
    monkeypatch.setattr(compilation_cache, "LIMIT", 25)
    compilation_cache.trim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-cache", "1-cache"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
