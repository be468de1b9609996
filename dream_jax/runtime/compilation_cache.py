"""Compiled programs kept on disk, so that the next start of the same config need not compile them again."""

import contextlib
import functools
import hashlib
import os
import platform
import socket
import threading
import time
from pathlib import Path

from dream_jax.files import cache

# Seconds. Programs that compile faster are not worth a file; a start that compiles for longer is told of.
LEAST, LONG = 1.0, 5.0
# Bytes. The programs that were not used for longest go first.
LIMIT = 4 * 2**30


def folder() -> Path:
    """The folder below `cache.root()` that keeps this host's programs.

    There is one for each host and processor: several hosts may share a home, a virtual machine may move to another
    processor, and a program that was compiled for one processor can crash on another.
    """
    digest = hashlib.sha256(processor().encode()).hexdigest()[:8]
    return cache.root() / "compiled" / f"{socket.gethostname()}-{digest}"


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def use(tell) -> None:
    """Sets where JAX keeps compiled programs; to be called before anything is compiled.

    JAX's own variables come first: JAX_COMPILATION_CACHE_DIR is another folder, or a bucket that several hosts share;
    empty, it switches this off.
    A folder that cannot be written is told of, and done without.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    where = folder()
    try:
        # Programs are run as they are found: the folder is no one else's to write to.
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        trim(where)
        if not os.access(where, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        tell(f"{where}: compiled programs cannot be kept there ({error.strerror or error}); every start compiles anew")
        return
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)


def trim(where):
    """Not by JAX's own limit, which cannot read a folder that it once wrote without one."""
    found = []
    for entry in os.scandir(where):
        try:
            found.append((entry.stat().st_atime, entry.stat().st_size, entry.path))
        except FileNotFoundError:  # another process trims too
            continue
    excess = sum(size for _, size, _ in found) - LIMIT
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        Path(path).unlink(missing_ok=True)
        excess -= size


@contextlib.contextmanager
def compiling(name: str, tell):
    """`ran() -> how long and why`, to be called when a program has run for the first time; tells if it is compiled."""
    import jax

    kept = jax.config.jax_compilation_cache_dir and jax.config.jax_enable_compilation_cache
    then = "; the next start of this config takes it from the cache" if kept else ""
    found, since = len(_found()), time.monotonic()

    def tell_if_compiled():
        if len(_found()) == found:
            tell(f"preparing {name}: where it has to be compiled, that can take minutes{then}")

    timer = threading.Timer(LONG, tell_if_compiled)
    timer.daemon = True

    def ran() -> str:
        timer.cancel()
        why = "its program from the cache" if len(_found()) > found else "most of it compiling"
        return f"{time.monotonic() - since:.1f} s, {why}"

    timer.start()
    try:
        yield ran
    finally:
        timer.cancel()


@functools.cache
def _found() -> list:
    """Grows by one entry with every program that JAX takes from the cache."""
    import jax

    found = []
    hit = "/jax/compilation_cache/cache_hits"
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event) if event == hit else None)
    return found
