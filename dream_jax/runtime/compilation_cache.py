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

# Seconds: a program that compiles faster is not kept; a person who waits longer for one is told why.
LEAST, LONG = 0.1, 5.0
# Bytes of all programs. Those that have not been used for the longest time are deleted first.
LIMIT = 4 * 2**30


def folder() -> Path:
    """The folder below `cache.root()` that keeps this host's programs.

    There is one for each host and processor: several hosts may share a home, a virtual machine may move to another
    processor, and a program that was compiled for one processor can crash on another.
    """
    digest = hashlib.sha256(processor().encode()).hexdigest()[:8]
    return cache.root() / "compiled" / f"{socket.gethostname()}-{digest}"


def processor() -> str:
    """What this machine's processor is, with the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def use(tell) -> None:
    """Sets where JAX keeps compiled programs; to be called before anything is compiled.

    Where JAX's own variable JAX_COMPILATION_CACHE_DIR is set, that counts: another folder, or a bucket that several
    hosts share; empty, it switches the cache off. Where the folder cannot be written, `tell` is called and nothing is
    kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    where = folder()
    try:
        # JAX runs the programs that it finds there, so nobody else may write to the folder.
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        trim(where)
        if not os.access(where, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        tell(f"{where}: compiled programs cannot be kept there ({error.strerror or error}); every start compiles anew")
        return
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)


def trim(where: Path) -> None:
    """Deletes programs until the others take LIMIT bytes at most.

    JAX has a limit of its own, but with it cannot read a folder that it wrote without one.
    """
    found = []
    for entry in os.scandir(where):
        try:
            found.append((entry.stat().st_atime, entry.stat().st_size, entry.path))
        except FileNotFoundError:  # another process has deleted it
            continue
    excess = sum(size for _, size, _ in found) - LIMIT
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        Path(path).unlink(missing_ok=True)
        excess -= size


@contextlib.contextmanager
def compiling(name: str, tell):
    """`ran() -> how long it took and why`, to be called when a program has run for the first time.

    `tell` is called where that takes LONG seconds because the program has to be compiled.
    """
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
    """A list that gets an entry for every program that JAX takes from the cache."""
    import jax

    found = []
    hit = "/jax/compilation_cache/cache_hits"
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event) if event == hit else None)
    return found
