"""Where a compiled program's time goes: the profiler's kernels, by what the program says they are for."""

import collections
import glob
import re
import tempfile
import time

WHAT = "in seconds of a GPU or of all processors, and in shares"
UNTRACED = "convolutions, with all that is not traced"
# The first pattern found, in what an operation is (with what is fused in it and whom it calls), or in the name that the
# program gives it, which says which layer it is of.
OPERATIONS = {
    "convolutions, kernel gradients": r"convBackwardFilter",
    "convolutions, input gradients": r"convBackwardInput",
    "convolutions": r"\$conv|cudnn\$fusion|convolution",
    "matrix products": r"\bdot\b|cublas|gemm",
    "random bits": r"rng|shift-left.*\bxor\b",
}
IN_NETWORK = {
    "attention": r"attention|softmax",
    "norm and activation": r"norm|silu",
    "dropout": r"dropout|threefry|random_bits",
    "concatenations": r"concatenate",
}
OUTSIDE = {"random bits": r"threefry|random|_normal|_uniform"}
# Kernels of libraries, by the names that these give them, where the program's name for them is not known.
LIBRARIES = {
    "convolutions": r"conv|fprop|dgrad|wgrad|implicit",
    "matrix products": r"gemm|nvjet|cutlass|cublas",
    "copies and transposes": r"(?i)memcpy|memset|transpose|nchw|nhwc",
}


def kind_of(operation: str, name: str) -> str:
    """The kind of an operation of a program, by itself and by its place in the program."""
    inside = "UNet" in name
    for said, kinds in ((operation, OPERATIONS), (name, IN_NETWORK if inside else OUTSIDE)):
        for kind, pattern in kinds.items():
            if re.search(pattern, said):
                return kind
    if inside:
        return "other in the network"
    return "copies and transposes" if re.search("copy|transpose", operation) else "optimizer, norms and the rest"


def kind_of_kernel(name: str) -> str:
    return next((kind for kind, pattern in LIBRARIES.items() if re.search(pattern, name)), "not in the program")


def operations(text: str) -> dict[str, tuple[str, str]]:
    """{name: (what it is with what is fused in it and whom it calls, its op_name)} of a compiled program's text."""
    computations = re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    bodies = {name: " ".join(re.findall(r" ([\w-]+)\(", body)) for name, body in computations}
    found = {}
    for name, operation, rest in re.findall(r"^\s+(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\((.*)$", text, re.MULTILINE):
        if operation in ("while", "call", "conditional"):
            continue  # their time is that of what they run
        called = re.search(r"calls=%?([\w.-]+)", rest)
        targets = re.findall(r"__cud\w+\$\w+|__cublas[\w$]*", rest)
        what = operation if called is None else bodies.get(called[1], "")
        place = re.search(r'op_name="([^"]*)"', rest)
        found[name] = " ".join([what, *targets]), place[1] if place else ""
    return found


def shares(run, text: str) -> dict:
    """Where the time of what `run()` computes goes.

    {"kinds": {"forward" or "backward", kind: seconds}, "kernels": how many ran, "longest": [[name, op_name, seconds,
    count]]}.

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
    known = operations(text)
    # A kernel that XLA makes has its operation's name, with other signs between the words.
    known |= {re.sub(r"[.-]", "_", name): said for name, said in known.items()}
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in on_device or planes:
        for line in plane.lines:
            if on_device and "Stream" not in line.name:
                continue
            for event in line.events:
                operation = dict(event.stats).get("hlo_op", event.name) if on_device else event.name
                if on_device or operation in known:
                    key = operation if operation in known else event.name
                    seconds[key] += event.duration_ns / 1e9
                    counts[key] += 1
    kinds = collections.Counter()
    for key, taken in seconds.items():
        kinds[label(key, known)] += taken
    if not on_device:
        # Eigen's convolutions are tasks of their own, which leave no trace.
        kinds[UNTRACED] = max(0, processors - sum(kinds.values()))
    longest = [[key, known.get(key, ("", ""))[1], taken, counts[key]] for key, taken in seconds.most_common(40)]
    return {"kinds": dict(kinds.most_common()), "kernels": sum(counts.values()), "longest": longest}


def label(key: str, known: dict) -> str:
    """The kind of a kernel or operation, and whether it belongs to the backward pass."""
    if key not in known:
        return kind_of_kernel(key)
    kind = kind_of(*known[key])
    return f"{kind}, backward" if "transpose(jvp" in known[key][1] and "gradients" not in kind else kind


def table(profile) -> str:
    if not profile:
        return "not measured"
    total = sum(profile["kinds"].values())
    rows = "\n".join(f"| {kind} | {taken:.4f} | {taken / total:.0%} |" for kind, taken in profile["kinds"].items())
    return f"| kind | seconds | share |\n|---|---|---|\n{rows}"
