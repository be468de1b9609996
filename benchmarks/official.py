"""The official PyTorch DREAM code, for `benchmarks.train_step` and `benchmarks.sampling`, which start this file.

    python benchmarks/official.py --official PATH --spec JSON

runs with a Python that has PyTorch, and needs nothing of JAX or of this project. Model, weights, objective, update,
noise schedule and the move from one level to the next are those of the code at PATH, driven as its main.py drives
them, and tuned as the spec lists. Its own sampling loop divides by zero below 500 steps, where it counts which pictures
to keep, so the loop around its `p_sample` is here. Prints one line of facts, then answers each line of its standard
input: {"count": N} with the seconds and processor seconds of N train steps each, {"steps": N, "batch": B} with the
seconds that B pictures in N steps took.
"""

import argparse
import contextlib
import functools
import importlib.machinery
import importlib.util
import json
import platform
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch


def options_of(spec: dict, device: str) -> dict:
    """The official code's own configuration."""
    unet = {
        "in_channel": 6,
        "out_channel": 3,
        "inner_channel": spec["channels"],
        "channel_multiplier": spec["channel_multipliers"],
        "attn_res": spec["attention_resolutions"],
        "res_blocks": spec["num_res_blocks"],
        "norm_groups": spec["norm_groups"],
        "dropout": spec["dropout"],
    }
    diffusion = {"image_size": spec["image_size"], "channels": 3, "conditional": True}
    return {
        "phase": "train",  # else it looks for weights to load
        "gpu_ids": [0] if device == "cuda" else None,
        "distributed": False,
        "path": {"resume_state": None},
        "model": {
            "which_model_G": "sr3",
            "finetune_norm": False,
            "unet": unet,
            "beta_schedule": {"train": schedule_of(2000)},
            "diffusion": diffusion,
        },
        "train": {"optimizer": {"type": "adam", "lr": 1e-4}},
    }


def schedule_of(steps: int) -> dict:
    return {"schedule": "linear", "n_timestep": steps, "linear_start": 1e-6, "linear_end": 1e-2}


def make_trainer(spec: dict, device: str):
    """(the official trainer, its network tuned; a context for its precision; the layout of its pictures)."""
    torch.manual_seed(0)
    np.random.seed(0)
    torch.backends.cudnn.benchmark = True
    import model as official

    trainer = official.create_model(options_of(spec, device))
    tuned = spec["tuned"]
    layout = torch.channels_last if "channels_last" in tuned else torch.contiguous_format
    if "channels_last" in tuned:
        trainer.netG.to(memory_format=layout)
    if "compile" in tuned:
        trainer.netG.denoise_fn = torch.compile(trainer.netG.denoise_fn)
    precision = contextlib.nullcontext
    if "bfloat16" in tuned:

        def precision():
            return torch.autocast(device, torch.bfloat16)

    return trainer, precision, layout


def make_step(spec: dict, device: str, trainer, precision, layout):
    """`step()`: one update of the official trainer."""
    tuned = spec["tuned"]
    shape = spec["batch_size"], 3, spec["image_size"], spec["image_size"]
    data = {name: torch.rand(shape) * 2 - 1 for name in ("HR", "SR")}
    order = str(spec["p"])
    if not tuned:

        def step():
            trainer.feed_data(dict(data))
            trainer.optimize_parameters(order=order)

        return step

    optimizer = torch.optim.Adam(trainer.netG.parameters(), lr=1e-4, fused="fused Adam" in tuned)

    def step():
        # As the trainer's optimize_parameters, without reading the loss back at every step.
        pair = {name: value.to(device, memory_format=layout, non_blocking=True) for name, value in data.items()}
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = trainer.netG(pair, order=order)
        (loss.sum() / pair["HR"].numel()).backward()
        optimizer.step()

    return step


def make_sample(spec: dict, device: str, trainer, precision, layout):
    """`sample(steps, batch) -> seconds` from noise to bytes on the host."""
    diffusion, side = trainer.netG.eval(), spec["image_size"]

    def sample(steps, batch):
        # Fewer steps are another schedule there, from the same first to the same last beta.
        diffusion.set_new_noise_schedule(schedule_of(steps), device)
        cond = (torch.rand(batch, 3, side, side, device=device) * 2 - 1).to(memory_format=layout)
        begun = time.perf_counter()
        x = torch.randn_like(cond)
        with precision():
            for number in reversed(range(steps)):
                x, _ = diffusion.p_sample(x, number, condition_x=cond)
        pictures = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        taken = time.perf_counter() - begun
        assert pictures.shape == cond.shape
        return taken

    return sample


def ceilings(device: str, dtype) -> dict:
    """What the device does at best here: a matrix product's FLOP/s and a copy's bytes/s, read and written."""
    n, size = (8192, 2**28) if device == "cuda" else (1536, 2**25)
    a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)

    def seconds(call):
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            synchronize(device)
            taken.append(time.perf_counter() - start)
        return min(taken)

    product, copy = seconds(lambda: torch.matmul(a, b)), seconds(lambda: target.copy_(source))
    return {"flops_per_second": 2 * n**3 / product, "bytes_per_second": 2 * 4 * size / copy}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(step, device: str, count: int) -> list:
    """(seconds, processor seconds) of each of so many calls."""
    taken = []
    for _ in range(count):
        start = time.perf_counter(), time.process_time()
        step()
        synchronize(device)
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--spec", type=json.loads, required=True)
    options = parser.parse_args()
    spec = options.spec
    root = options.official / "sr3" if (options.official / "sr3").is_dir() else options.official
    sys.path.insert(0, str(root))
    # Its files name them at the top and use them for progress bars, if at all.
    for name in ("torchvision", "tqdm"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name].tqdm = iter
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if spec.get("threads"):
        torch.set_num_threads(spec["threads"])

    trainer, precision, layout = make_trainer(spec, device)
    facts = {
        "parameters": sum(p.numel() for p in trainer.netG.parameters()),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    if spec.get("batch_size"):
        step = make_step(spec, device, trainer, precision, layout)
        answer = functools.partial(time_steps, step, device)
        first = sum(seconds for seconds, _ in time_steps(step, device, 2))
        facts["warm_up_seconds"] = first - 2 * min(time_steps(step, device, 2))[0]
        facts["peak_bytes"] = torch.cuda.max_memory_allocated() if device == "cuda" else None
    else:
        answer = make_sample(spec, device, trainer, precision, layout)
        for batch in spec["batches"]:
            answer(steps=1, batch=batch)
    if spec.get("ceilings"):
        facts["ceilings"] = ceilings(device, torch.bfloat16 if "bfloat16" in spec["tuned"] else torch.float32)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
