"""How much memory a program takes: guessed before it is compiled, told by its compiler, and what is free for it."""

import os
from pathlib import Path

import jax


def live_bytes(jaxpr) -> int:
    """The most bytes of intermediate values alive at once in a jaxpr run in order, none fused, none shared.

    An estimate from above of what a compiler makes of it; arguments are not counted.
    """
    last = {id(v): i for i, equation in enumerate(jaxpr.eqns) for v in equation.invars}
    last |= {id(v): len(jaxpr.eqns) for v in jaxpr.outvars}
    alive, peak, sizes = 0, 0, {}
    for i, equation in enumerate(jaxpr.eqns):
        for v in equation.outvars:
            if id(v) in last:
                sizes[id(v)] = v.aval.size * v.aval.dtype.itemsize
                alive += sizes[id(v)]
        peak = max(peak, alive + max(map(live_bytes, _inner(equation)), default=0))
        alive -= sum(sizes.pop(v) for v in {id(v) for v in equation.invars} if last[v] == i and v in sizes)
    return peak


def _inner(equation):
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def compiled_bytes(compiled) -> int | None:
    """Bytes on each device for a compiled function's arguments, results and intermediate values, by its compiler.

    None where the backend does not tell.
    """
    try:
        stats = compiled.memory_analysis()
        return (
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            + stats.temp_size_in_bytes
            - stats.alias_size_in_bytes
        )
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def program_bytes() -> int:
    """Memory that this program takes now on a CPU; 0 on accelerators, where it is but the weights."""
    if jax.default_backend() != "cpu":
        return 0
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def free_bytes(device) -> int:
    """Memory of a device that is free: an accelerator's own, or the machine's, within its control group's limit."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control group, or no limit in it
        return free
    return min(free, limit - used)
