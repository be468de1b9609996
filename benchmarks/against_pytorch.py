"""The train step beside PyTorch: on one GPU in nine minutes from a bare start, or on CPU by turns.

    python -m benchmarks.against_pytorch OUT [--official CHECKOUT] [--python PYTHON] [--then] [--parts NAME ...]

measures the parts of PARTS in order of value, with --then those of THEN, each in a process of its own that is killed at
its cap, one after the other: no two programs are compiled at once. OUT/measured.jsonl and OUT/against_pytorch.md, the
page, have what was measured at once, OUT/log.txt what the processes said. Whatever ends the command, they keep what was
done, and the same command goes on with what is not done. What was compiled, and how its algorithms were chosen, is kept
in OUT/cache.0, cache.1, ..., and used where OUT or --carried has it: then parts start in seconds.

CHECKOUT is a checkout of the official DREAM code, and PYTHON has PyTorch; parts that need what is not there are "not
measured". Without a GPU the network is a tiny one, with which the command takes minutes and tells nothing about speed.
For a CPU's speed, let parts of a larger one take turns, so that whatever else the machine does meets them all alike:

    python -m benchmarks.against_pytorch OUT --official CHECKOUT --network small --turns 7 --parts step official
"""

import argparse
import glob
import json
import math
import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

from benchmarks import capped, report, trace
from benchmarks.train_step import PRESETS
from dream_jax.errors import UserError

PAGE, OFFICIAL = "against_pytorch.md", Path(__file__).with_name("official.py")
# Seconds of the whole command, and those of them for its end.
LIMIT, RESERVE = 540, 10
# (pixels of a side, channels in, channels out) of 3 x 3 convolutions of SR3's network.
SHAPES = (
    *((128, 6, 64), (128, 64, 64), (128, 128, 64), (128, 64, 3)),
    *((64, 128, 128), (32, 256, 256), (16, 512, 512), (8, 512, 512)),
)
STEP, STANDARD = ({"kind": "step", "objective": objective} for objective in ("dream", "standard"))
SAMPLING = {"kind": "sampling", "objective": "dream"}
SHIPPED, EAGER = {"tuned": []}, {"tuned": ["bfloat16", "channels_last", "fused Adam"]}
COMPILED = {"tuned": [*EAGER["tuned"], "compile"]}
# {name: (seconds at most, whose, what is measured, how often)}. PyTorch is "official" with that code, else "torch".
PARTS = {
    "ceilings": (25, "ours", {"kind": "ceilings"}, 1),
    "step": (300, "ours", STEP, 3),
    "official": (60, "official", STEP | SHIPPED, 3),
    "torch eager": (35, "official", STEP | EAGER, 3),
    "torch compiled": (150, "official", STEP | COMPILED, 3),
    "profile": (45, "ours", STEP, 1),
    "standard": (40, "ours", STANDARD, 3),
    "convolutions": (30, "ours", {"kind": "convolutions"}, 1),
    "torch convolutions": (30, "torch", {"kind": "convolutions"}, 1),
}
THEN = {
    "sampling": (150, "ours", SAMPLING, 3),
    "torch sampling": (150, "official", SAMPLING | COMPILED, 3),
    "deterministic": (200, "ours", {"kind": "deterministic"}, 1),
    "half batch": (300, "ours", STEP | {"times": 0.5}, 3),
    "double batch": (300, "ours", STEP | {"times": 2}, 3),
    "standard, compiled": (300, "ours", STANDARD, 3),
}
# By name alone.
MORE = {
    "official sampling": (150, "official", SAMPLING | SHIPPED, 3),
    "conservative": (300, "ours", STEP | {"objective": "conservative_dream"}, 3),
    "four microbatches": (300, "ours", STEP | {"accumulation": 4}, 3),
    **{f"without {name}": (300, "ours", STEP | {"without": [name]}, 3) for name in ("options", "gradients")},
}
ALL = PARTS | THEN | MORE
# Measured only with a program that is kept already: compiling it takes longer than the part may.
KEPT = "profile", "standard"


def questions(name: str, kind: str, times: int, network: str) -> tuple:
    """What a part is asked, for a network on a GPU (paper), on a CPU, and to see that it runs (tiny)."""
    large, tiny = network == "paper", network == "tiny"
    if name == "profile":
        return ({"profile": 5 if large else 2},)
    if kind == "step":
        return times * ({"count": 1 if not large else 5 if name == "official" else 10},)
    if kind == "sampling":
        return times * ({"steps": 100, "batch": 100} if large else {"steps": 10, "batch": 8},)
    if kind == "convolutions":
        shapes = [(side // 8 if tiny else side, *channels) for side, *channels in SHAPES]
        return tuple(dict(zip(("side", "inputs", "outputs"), shape, strict=True)) for shape in shapes)
    return tuple({"number": number} for number in range(1 if tiny else 4)) if kind == "deterministic" else ({},)


def make_parts(options) -> dict[str, capped.Part]:
    parts, base = {}, PRESETS[options.network] | {"gpu": options.gpu, "batch_size": options.batch_size}
    for name in options.parts or (THEN if options.then else PARTS):
        cap, whose, measured, times = ALL[name]
        spec = base | measured | {"batch_size": int(options.batch_size * measured.get("times", 1))}
        if "tuned" in spec and not options.gpu:
            spec["tuned"] = [way for way in spec["tuned"] if way != "bfloat16"]
        command = [sys.executable, "-m", "benchmarks.ours", json.dumps(spec)]
        if whose != "ours":
            code = ["--official", str(Path(options.official).resolve())] if options.official else []
            python = os.path.abspath(shutil.which(options.python) or options.python)
            command = [python, str(OFFICIAL), *code, "--spec", json.dumps(spec)]
        parts[name] = capped.Part(
            command=command,
            cap=math.inf if options.turns else cap * options.patience,
            questions=questions(name, spec["kind"], options.turns or times, options.network),
            program=json.dumps(spec) if command[1] == "-m" and spec["kind"] == "step" else None,
            kept=name in KEPT and options.gpu and not options.parts,
            missing="no --official" if whose == "official" and not options.official else None,
        )
    return parts


def column(part: dict | None, key: str) -> list[float]:
    return [answer[key] for answer in part["answers"] if answer.get(key)] if part else []


def result(part: dict) -> str:
    """What a part has measured, in words."""
    facts, said = part["facts"], []
    if seconds := column(part, "seconds"):
        middle = statistics.median(seconds)
        pictures = part["questions"][0].get("batch") or facts["batch_size"]
        said.append(f"{middle:.4f} s ({min(seconds):.4f} to {max(seconds):.4f}), {pictures / middle:,.1f} pictures/s")
    if processors := column(part, "processors"):
        said.append(f"{statistics.median(processors):.3f} processor seconds")
    if peaks := column(part, "peak_bytes"):
        said.append(f"peak {max(peaks) / 2**20:,.0f} MiB")
    if "program_bytes" in facts:
        said.append(f"{facts['program_bytes'] / 2**20:,.0f} MiB by the compiler's count")
        said.append(f"ready after {facts['ready_seconds']:.0f} s, {'kept' if facts['kept'] else 'compiled'}")
    for asked, answer in zip(part["questions"], part["answers"], strict=True):
        if "flops_per_second" in answer:
            said.append(
                f"{answer['flops_per_second'] / 1e12:.3g} TFLOP/s, {answer['bytes_per_second'] / 1e9:,.1f} GB/s"
            )
        if "kernels" in answer:
            said.append(f"{answer['kernels'] / asked['profile']:,.0f} kernels a step")
        if "status" in answer:
            said.append(f"killed at step {answer['step']} and repeated: as one that was not")
    return "; ".join(said)


def ratios(parts: dict) -> str:
    """Of times, turn by turn, and of what the step computes to the ceiling."""
    steps = [name for name, (*_, of, _) in ALL.items() if of["kind"] == "step" and "times" not in of]
    pairs = [(name, "step") for name in steps if not name.startswith(("step", "standard", "profile"))]
    pairs += [("step", "standard"), ("torch sampling", "sampling"), ("official sampling", "sampling")]
    lines = []
    for a, b in pairs:
        cells = []
        for key in ("seconds", "processors"):
            both = zip(column(parts.get(a), key), column(parts.get(b), key), strict=False)
            turns = [above / below for above, below in both]
            cells.append(f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f})" if turns else "")
        if any(cells):
            lines.append(f"| {a} / {b} | {' | '.join(cells)} |")
    tops, seconds = column(parts.get("ceilings"), "flops_per_second"), column(parts.get("step"), "seconds")
    if tops and seconds:
        rate = parts["step"]["facts"]["flops"] / statistics.median(seconds)
        lines.append(f"| arithmetic of step, by the compiler's count / ceiling | {rate / tops[0]:.2f} | |")
    return "\n".join(lines)


def convolutions(parts: dict) -> str:
    taken = [{}, {}]
    for side, name in zip(taken, ("convolutions", "torch convolutions"), strict=True):
        for asked, answer in zip(*(parts.get(name, {}).get(key, ()) for key in ("questions", "answers")), strict=True):
            side["{side} x {side}, {inputs} to {outputs}".format(**asked)] = answer
    lines = []
    for shape in dict.fromkeys([*taken[0], *taken[1]]):
        cells = [
            " / ".join(f"{side[shape][way] * 1e3:.3f}" if shape in side else "not measured" for side in taken)
            for way in ("forward", "input", "kernel")
        ]
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(out: Path, head: dict) -> str:
    parts = capped.read(out)
    facts = [part["facts"] for part in parts.values()]
    devices = dict.fromkeys(each["device"] for each in facts if "device" in each)
    versions = {name: version for each in facts for name, version in each.get("versions", {}).items()}
    network = next((each for each in facts if "dtype" in each), {"parameters": 0, "dtype": "?"})
    rows = "\n".join(
        f"| {name} | {result(part)} | {part['ended']} | {'' if part['seconds'] is None else round(part['seconds'])} |"
        for name, part in parts.items()
    )
    profile = next(iter(parts.get("profile", {"answers": ()})["answers"]), None)
    longest = "\n".join(
        f"| `{name[:60]}` | {place[-90:]} | {taken * 1e3:.3f} | {count} |"
        for name, place, taken, count in (profile or {"longest": ()})["longest"]
    )
    return f"""# The train step beside PyTorch

`python -m benchmarks.against_pytorch` at {head["commit"]} on {"; ".join(devices) or "an unknown device"}:
{report.listed(versions)}.

SR3 UNet of {network["parameters"]:,} parameters, {head["side"]} x {head["side"]} pixels, batch {head["batch_size"]},
{network["dtype"]}, dropout 0.2, DREAM with p = 1{head["turns"]}. Medians (range) of several steps with one
synchronisation. Our step also degrades the pictures, averages the weights and takes norms. Peaks leave out what
choosing among algorithms takes.

| part | result | ended | took, s |
|---|---|---|---|
{rows}

| ratio | of seconds | of processor seconds |
|---|---|---|
{ratios(parts)}

Convolutions 3 x 3, milliseconds, ours / PyTorch's:

| shape | forward | input's gradient | kernel's gradient |
|---|---|---|---|
{convolutions(parts)}

Where the time of the profile's steps goes, {trace.WHAT}:

{trace.table(profile)}

| longest | its name in the program | ms | times |
|---|---|---|---|
{longest}
"""


def main() -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for what is measured")
    parser.add_argument("--official", metavar="CHECKOUT", help="of the official DREAM code")
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--carried", type=Path, metavar="FOLDER", help="with cache.0, ... of an earlier OUT")
    parser.add_argument("--then", action="store_true", help="the second nine minutes")
    parser.add_argument("--parts", nargs="+", choices=ALL, metavar="NAME", help="of: " + ", ".join(ALL))
    parser.add_argument("--network", choices=PRESETS, help="paper on a GPU, else tiny")
    parser.add_argument("--batch_size", type=int, help="instead of the network's")
    parser.add_argument("--turns", type=int, metavar="N", help="the parts take turns, N each, without caps")
    parser.add_argument("--limit", type=float, help=f"seconds of the whole command ({LIMIT}, with --turns none)")
    parser.add_argument("--patience", type=float, default=1, metavar="N", help="N times the caps, on a slow machine")
    options = parser.parse_args()
    options.gpu = bool(glob.glob("/dev/nvidia[0-9]*")) and os.environ.get("JAX_PLATFORMS") != "cpu"
    options.network = options.network or ("paper" if options.gpu else "tiny")
    options.batch_size = options.batch_size or PRESETS[options.network]["batch_size"]
    parts, limit = make_parts(options), options.limit or (math.inf if options.turns else LIMIT * options.patience)
    head = {"commit": report.commit(), "jax": report.versions("jax")["jax"], "gpu": options.gpu}
    head |= {"network": options.network, "side": PRESETS[options.network]["image_size"]}
    head |= {"batch_size": options.batch_size, "turns": ", all taking turns" if options.turns else ""}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    def show():
        (options.out / f"{PAGE}.part").write_text(page(options.out, head))
        (options.out / f"{PAGE}.part").replace(options.out / PAGE)

    try:
        runner = capped.Runner(options.out, head, begun + limit - RESERVE, show, options.carried)
    except UserError as error:
        parser.error(str(error))
    with runner:
        for group in [parts] if options.turns else [{name: part} for name, part in parts.items()]:
            runner.measure(group)
            for name in group:
                print(f"{name}: {capped.read(options.out)[name]['ended']}", flush=True)
    print((options.out / PAGE).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
