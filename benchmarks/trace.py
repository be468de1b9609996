"""Where a compiled program's time goes, by the kind of operation, as the profiler sees it."""

import collections
import glob
import re
import tempfile

WHAT = "in seconds of all its threads or streams and in shares"
# The first pattern that the operation's or kernel's name matches names its kind.
KINDS = {
    "convolutions and matrix products": r"conv|cudnn|xmma|cutlass|gemm|dot|sm\d0_|nvjet|implicit",
    "random bits": r"threefry|rng|shift_right|xor",
    "sums": r"reduce",
    "collectives": r"all.reduce|reduce.scatter|all.gather",
    "copies and transposes": r"copy|transpose|memcpy|concatenate|pad|slice",
}
OTHER = "elementwise"


def shares(run, text: str) -> dict:
    """{"kinds": {kind: seconds}, "longest": [[name, seconds, count]]} of what `run()` computes.

    Args:
      text: of the compiled program: only its operations count on CPU, where others are traced beside them.
    """
    import jax

    names = set(re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = ", text, re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = list(jax.profiler.ProfileData.from_file(file).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in on_device or planes:
        for line in plane.lines:
            if on_device and "Stream" not in line.name:
                continue
            for event in line.events:
                if on_device or event.name in names:
                    seconds[event.name] += event.duration_ns / 1e9
                    counts[event.name] += 1
    kinds = collections.Counter()
    for name, taken in seconds.items():
        kinds[next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), OTHER)] += taken
    longest = [[name, taken, counts[name]] for name, taken in seconds.most_common(40)]
    return {"kinds": dict(kinds.most_common()), "longest": longest}


def table(profile) -> str:
    if not profile:
        return "not measured"
    total = sum(profile["kinds"].values())
    rows = "\n".join(f"| {kind} | {taken:.3f} | {taken / total:.0%} |" for kind, taken in profile["kinds"].items())
    return f"| kind | seconds | share |\n|---|---|---|\n{rows}"
