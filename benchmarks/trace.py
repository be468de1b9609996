"""Where a compiled program's time goes, by the kind of operation, as the profiler sees it."""

import collections
import glob
import re
import tempfile
import time

WHAT = "in seconds of a GPU or of all processors, and in shares"
UNTRACED = "convolutions, with all that is not traced"
# The first pattern found in a kernel's name (GPU), or in an operation's name and what is fused in it (CPU).
KINDS = {
    "convolutions and matrix products": r"convol|conv_|conv2d|cudnn|xmma|cutlass|gemm|\bdot\b|sm\d0_|nvjet",
    "random bits": r"threefry|rng|shift_right|\bxor\b",
    "sums": r"reduce",
    "copies and transposes": r"copy|transpose|memcpy|concatenate|pad|slice",
}
OTHER = "elementwise"


def shares(run, text: str) -> dict:
    """{"kinds": {kind: seconds}, "longest": [[name, seconds, count]]} of what `run()` computes.

    Args:
      text: of the compiled program: only its operations count on CPU, where others are traced beside them.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begun = time.process_time()
            run()
            processors = time.process_time() - begun
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = list(jax.profiler.ProfileData.from_file(file).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    contents = {} if on_device else fused(text)
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in on_device or planes:
        for line in plane.lines:
            if on_device and "Stream" not in line.name:
                continue
            for event in line.events:
                if on_device or event.name in contents:
                    seconds[event.name] += event.duration_ns / 1e9
                    counts[event.name] += 1
    kinds = collections.Counter()
    for name, taken in seconds.items():
        said = f"{name} {contents.get(name, '')}"
        kinds[next((kind for kind, pattern in KINDS.items() if re.search(pattern, said)), OTHER)] += taken
    if not on_device:
        # Eigen's convolutions are tasks of their own, which leave no trace.
        kinds[UNTRACED] = processors - sum(kinds.values())
    longest = [[name, taken, counts[name]] for name, taken in seconds.most_common(40)]
    return {"kinds": dict(kinds.most_common()), "longest": longest}


def fused(text: str) -> dict[str, str]:
    """{operation: the operations that are fused in it} of a compiled program's text."""
    computations = re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    bodies = {name: " ".join(re.findall(r" ([\w-]+)\(", body)) for name, body in computations}
    found = {}
    for name, operation, rest in re.findall(r"^\s+(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\((.*)$", text, re.MULTILINE):
        called = re.search(r"calls=%?([\w.-]+)", rest)
        found[name] = operation if called is None else bodies.get(called[1], "")
    return found


def table(profile) -> str:
    if not profile:
        return "not measured"
    total = sum(profile["kinds"].values())
    rows = "\n".join(f"| {kind} | {taken:.3f} | {taken / total:.0%} |" for kind, taken in profile["kinds"].items())
    return f"| kind | seconds | share |\n|---|---|---|\n{rows}"
