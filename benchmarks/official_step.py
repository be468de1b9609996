"""The train step of the official PyTorch DREAM code, for `benchmarks.train_step`, which starts this file.

    python benchmarks/official_step.py --official PATH --spec JSON

runs with a Python that has PyTorch, and needs nothing of JAX or of this project. The model, its weights, objective and
update are those of the code at PATH, driven as its main.py drives them. Prints one line of facts, then answers each
line "N" of its standard input with the seconds and processor seconds of N steps.
"""

import argparse
import contextlib
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
    schedule = {"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 1e-2}
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
        "phase": "train",
        "gpu_ids": [0] if device == "cuda" else None,
        "distributed": False,
        "path": {"resume_state": None},
        "model": {
            "which_model_G": "sr3",
            "finetune_norm": False,
            "unet": unet,
            "beta_schedule": {"train": schedule},
            "diffusion": diffusion,
        },
        "train": {"optimizer": {"type": "adam", "lr": 1e-4}},
    }


def make_step(spec: dict, device: str):
    """(step, parameters): one update by the official trainer, tuned as `spec["tuned"]` lists."""
    torch.manual_seed(0)
    np.random.seed(0)
    torch.backends.cudnn.benchmark = True
    import model as official

    trainer = official.create_model(options_of(spec, device))
    parameters = sum(p.numel() for p in trainer.netG.parameters())
    tuned = spec["tuned"]
    shape = spec["batch_size"], 3, spec["image_size"], spec["image_size"]
    data = {name: torch.rand(shape) * 2 - 1 for name in ("HR", "SR")}
    order = str(spec["p"])
    if not tuned:

        def step():
            trainer.feed_data(dict(data))
            trainer.optimize_parameters(order=order)

        return step, parameters

    layout = torch.channels_last if "channels_last" in tuned else torch.contiguous_format
    trainer.netG.to(memory_format=layout)
    if "compile" in tuned:
        trainer.netG.denoise_fn = torch.compile(trainer.netG.denoise_fn)
    optimizer = torch.optim.Adam(trainer.netG.parameters(), lr=1e-4, fused="fused Adam" in tuned)
    precision = contextlib.nullcontext
    if "bfloat16" in tuned:

        def precision():
            return torch.autocast(device, torch.bfloat16)

    def step():
        # As the trainer's optimize_parameters, without reading the loss back at every step.
        pair = {name: value.to(device, memory_format=layout, non_blocking=True) for name, value in data.items()}
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = trainer.netG(pair, order=order)
        (loss.sum() / pair["HR"].numel()).backward()
        optimizer.step()

    return step, parameters


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--spec", type=json.loads, required=True)
    options = parser.parse_args()
    spec = options.spec
    root = options.official / "sr3" if (options.official / "sr3").is_dir() else options.official
    sys.path.insert(0, str(root))
    # Its files name them at the top and use them for sampling alone, if at all.
    for name in ("torchvision", "tqdm"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name].tqdm = iter
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])

    step, parameters = make_step(spec, device)

    def run(count):
        taken = []
        for _ in range(count):
            start = time.perf_counter(), time.process_time()
            step()
            synchronize(device)
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        return taken

    first = sum(seconds for seconds, _ in run(2))
    steady = min(run(2))[0]
    facts = {
        "parameters": parameters,
        "warm_up_seconds": first - 2 * steady,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    if spec["ceilings"]:
        dtype = torch.bfloat16 if "bfloat16" in spec["tuned"] else torch.float32
        facts["ceilings"] = ceilings(device, dtype)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(int(line))), flush=True)


if __name__ == "__main__":
    main()
