"""Our side of `benchmarks.against_pytorch`, in a process of its own.

    python -m benchmarks.ours SPEC

prints a line of facts when it is ready, and then answers each line of its standard input; all in JSON. SPEC["kind"] is
what it measures, a key of KINDS, whose functions say what they answer. Other keys are those of a network, as in
`train_step.PRESETS`, its objective, and gpu, whether a GPU is asked for. The device is waited for once in an answer.
"""

import json
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import agreement, capped, report, scaling, soak, trace
from benchmarks.train_step import make_config
from dream_jax import experiment
from dream_jax.inference import drawing
from dream_jax.networks import convolution
from dream_jax.runtime import compiler, sharding

COMPILED, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


def device_facts(spec: dict) -> dict:
    device = jax.devices()[0]
    if spec["gpu"] and device.platform == "cpu":
        raise capped.NotMeasured("JAX sees no GPU")
    kind = f"CPU, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    return {"device": kind, "versions": report.versions("jax", "jaxlib", "flax", "optax", "numpy")}


def dtype_of(spec: dict):
    return jnp.bfloat16 if spec["gpu"] else jnp.float32


def step(spec: dict):
    """Train steps: {"count": N} is answered with the seconds of one of N, {"profile": N} with where the time of N goes.

    spec["without"] names what makes them fast on CPU, to be undone: compiler options, gradients of convolutions. The
    peak of memory is told where no program was compiled in this process: choosing among algorithms takes more.
    """
    if "options" in spec.get("without", ()):
        compiler.options = lambda deterministic=False: {}
    if "gradients" in spec.get("without", ()):
        convolution.conv_general_dilated = lax.conv_general_dilated
    facts, compiled, found = device_facts(spec), [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event == COMPILED else None
    )
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event) if event == FOUND else None)
    config = make_config(spec)
    begun = time.perf_counter()
    prepared = scaling.prepare(config, sharding.make_mesh(devices=jax.devices()[:1]))
    ready = time.perf_counter() - begun
    state, program = prepared.state, prepared.step
    layout, batch = prepared.batch["image"].sharding, jax.device_get(prepared.batch)
    kept = len(found) >= len(compiled)

    def run(count):
        nonlocal state
        for _ in range(count):
            state, metrics = program(prepared.seed, state, jax.device_put(batch, layout))
        return jax.block_until_ready((state, metrics))[1]

    loss = float(run(2)["loss"])
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss}: its steps would not be those of training")
    memory, cost = program.memory_analysis(), program.cost_analysis()
    built = experiment.build(config)
    shapes = jax.eval_shape(built.network.init, jax.random.key(0), jnp.zeros(built.inputs_shape()), jnp.ones(1))
    facts |= {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
        "batch_size": config.batch_size,
        "dtype": np.dtype(experiment.compute_dtype(config)).name,
        "ready_seconds": ready,
        "compile_seconds": sum(compiled),
        "kept": kept,
        "program_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
    }  # fmt: skip

    def reply(count=0, profile=0):
        if profile:
            said = trace.shares(lambda: run(profile), program.as_text())
        else:
            begun = time.perf_counter(), time.process_time()
            run(count)
            said = {"seconds": (time.perf_counter() - begun[0]) / count}
            said |= {"processors": (time.process_time() - begun[1]) / count}
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return said | {"peak_bytes": peak if kept else None}

    return facts, reply


def sampling(spec: dict):
    """{"steps": N, "batch": B, "sampler": name} is answered with the seconds from noise to uint8 pictures on the host.

    The first time, with what has to be compiled, is not told.
    """
    facts, built = device_facts(spec), experiment.build(make_config(spec))
    drawer = drawing.make_draw(built, sharding.make_mesh(devices=jax.devices()[:1]))
    side, key = spec["image_size"], drawing.make_key(0)
    shapes = jax.eval_shape(built.network.init, jax.random.key(0), jnp.zeros(built.inputs_shape()), jnp.ones(1))
    params = jax.tree.map(jnp.asarray, agreement.weights(shapes["params"]))

    def draw(sampler, steps, batch):
        cond = np.random.default_rng(0).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)
        rows, inputs = drawing.make_rows(built, sampler, steps), drawing.inputs_of(built, cond)
        begun = time.perf_counter()
        pictures = np.asarray(drawer(params, inputs, np.arange(batch), rows, key))
        taken = time.perf_counter() - begun
        if pictures.shape != cond.shape or pictures.std() == 0:
            raise ValueError(f"pictures {pictures.shape} without content")
        return {"seconds": taken}

    warm = set()

    def reply(steps, batch, sampler="ddpm"):
        if (steps, batch) not in warm:
            draw(sampler, steps, batch)
            warm.add((steps, batch))
        return draw(sampler, steps, batch)

    facts |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    return facts | {"dtype": np.dtype(experiment.compute_dtype(built.config)).name}, reply


def seconds_of(function, *inputs, calls: int = 10, turns: int = 3) -> float:
    """The seconds of one of several calls in the fastest turn; what has to be compiled is compiled before."""
    jax.block_until_ready(function(*inputs))
    taken = []
    for _ in range(turns):
        begun = time.perf_counter()
        for _ in range(calls):
            result = function(*inputs)
        jax.block_until_ready(result)
        taken.append((time.perf_counter() - begun) / calls)
    return min(taken)


def ceilings(spec: dict):
    """{} is answered with the FLOP/s of a large matrix product and the bytes/s of a copy, both of random numbers.

    Bytes are those read and written. Numbers that are all alike would let a GPU run faster than it can with others.
    """
    facts, (n, size) = device_facts(spec), (8192, 2**28) if spec["gpu"] else (1024, 2**24)

    def draw(number, *shape):
        return jax.random.normal(jax.random.key(number), shape, jnp.float32)

    def reply():
        a, b = (draw(number, n, n).astype(dtype_of(spec)) for number in (0, 1))
        product = seconds_of(jax.jit(jnp.matmul), a, b)
        copy = seconds_of(jax.jit(jnp.negative), draw(2, size))
        return {"flops_per_second": 2 * n**3 / product, "bytes_per_second": 2 * 4 * size / copy}

    return facts, reply


def convolutions(spec: dict):
    """{"side", "inputs", "outputs"} is answered with the seconds of a 3 x 3 convolution and of its two gradients."""
    options = compiler.options()

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def reply(side, inputs, outputs):
        shapes = (
            (spec["batch_size"], side, side, inputs),
            (3, 3, inputs, outputs),
            (spec["batch_size"], side, side, outputs),
        )
        draw = np.random.default_rng(0).standard_normal
        x, kernel, cotangent = (jnp.asarray(draw(shape, np.float32), dtype_of(spec)) for shape in shapes)
        of_x = jax.jit(lambda k, c: jax.vjp(lambda x: convolve(x, k), x)[1](c), compiler_options=options)
        of_kernel = jax.jit(lambda x, c: jax.vjp(lambda k: convolve(x, k), kernel)[1](c), compiler_options=options)
        return {
            "forward": seconds_of(jax.jit(convolve, compiler_options=options), x, kernel),
            "input": seconds_of(of_x, kernel, cotangent),
            "kernel": seconds_of(of_kernel, x, cotangent),
        }

    return device_facts(spec), reply


def deterministic(spec: dict):
    """{"number": N} is answered with what the Nth killed and repeated run of `benchmarks.soak` met.

    Runs use the device, in turn, so that this process does not.
    """
    # Its runs are in another folder than this process.
    os.environ[capped.JAX] = os.path.abspath(os.environ[capped.JAX])
    trials = soak.Trials(Path(tempfile.mkdtemp()), seed=0, quick=not spec["gpu"], gpu=spec["gpu"])
    workdir, seconds = trials.straight()

    def reply(number):
        return trials.interrupted(signal.SIGKILL, in_save=number % 2 == 1)

    return {"seconds": seconds, "steps": soak.newest_step(workdir)}, reply


KINDS = {
    "step": step,
    "sampling": sampling,
    "ceilings": ceilings,
    "convolutions": convolutions,
    "deterministic": deterministic,
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    try:
        facts, reply = KINDS[spec["kind"]](spec)
    except capped.NotMeasured as reason:
        facts, reply = {"not_measured": str(reason)}, None
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(reply(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
