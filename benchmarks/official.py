"""PyTorch's side of `benchmarks.against_pytorch`, in a process of its own.

    python benchmarks/official.py --official PATH --spec JSON

runs with a Python that has PyTorch, and needs nothing of JAX or of this project. Model, objective, update, noise
schedule and the move from one level to the next are those of the official DREAM code at PATH, driven as its main.py
drives them, and tuned as the spec lists. Its own sampling loop divides by zero below 500 steps, where it counts which
pictures to keep, so the loop around its `p_sample` is here. Its first weights are normal ones instead of orthogonal
ones, which take long to make.

Prints a line of facts when it is ready, and then answers each line of its standard input, as `ours.py` does:
{"count": N} with the seconds of one of N train steps, {"steps": N, "batch": B} with those that B pictures in N steps
took, {"side", "inputs", "outputs"} with those of a convolution and its gradients. The device is waited for once.
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import sys
import time
import types
from pathlib import Path

try:
    import numpy as np
    import torch
except ModuleNotFoundError as error:
    print(json.dumps({"not_measured": f"no {error.name}"}), flush=True)
    sys.exit()


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
    torch.nn.init.orthogonal_ = lambda tensor, gain=1: torch.nn.init.kaiming_normal_(tensor)
    import model as official

    trainer = official.create_model(options_of(spec, device))
    tuned = spec["tuned"]
    layout = torch.channels_last if "channels_last" in tuned else torch.contiguous_format
    if "channels_last" in tuned:
        trainer.netG.to(memory_format=layout)
    if "compile" in tuned and spec["kind"] == "step":
        trainer.netG.denoise_fn = torch.compile(trainer.netG.denoise_fn)
    precision = contextlib.nullcontext
    if "bfloat16" in tuned:

        def precision():
            return torch.autocast(device, torch.bfloat16)

    return trainer, precision, layout


def step(spec: dict, device: str):
    """`reply(count)` with the seconds of one update of the official trainer, and the peak of memory since the last."""
    trainer, precision, layout = make_trainer(spec, device)
    tuned = spec["tuned"]
    shape = spec["batch_size"], 3, spec["image_size"], spec["image_size"]
    data = {name: torch.rand(shape) * 2 - 1 for name in ("HR", "SR")}

    def shipped():
        trainer.feed_data(dict(data))
        trainer.optimize_parameters(order="1.0")

    if tuned:
        optimizer = torch.optim.Adam(trainer.netG.parameters(), lr=1e-4, fused="fused Adam" in tuned)
        data = {name: value.contiguous(memory_format=layout) for name, value in data.items()}
        if device == "cuda":
            data = {name: value.pin_memory() for name, value in data.items()}

    def tuned_step():
        # As the trainer's optimize_parameters, without reading the loss back at every step.
        pair = {name: value.to(device, non_blocking=True) for name, value in data.items()}
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = trainer.netG(pair, order="1.0")
        (loss.sum() / pair["HR"].numel()).backward()
        optimizer.step()

    def reply(count):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter(), time.process_time()
        for _ in range(count):
            tuned_step() if tuned else shipped()
        synchronize(device)
        said = {"seconds": (time.perf_counter() - begun[0]) / count}
        said |= {"processors": (time.process_time() - begun[1]) / count}
        return said | {"peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None}

    warm_up = [reply(1)["seconds"] for _ in range(3)]
    facts = {"parameters": count_of(trainer), "batch_size": spec["batch_size"], "ready_seconds": sum(warm_up)}
    return facts, reply


def count_of(trainer) -> int:
    return sum(parameter.numel() for parameter in trainer.netG.parameters())


def sampling(spec: dict, device: str):
    """`reply(steps, batch)` with the seconds from noise to bytes on the host."""
    trainer, precision, layout = make_trainer(spec, device)
    diffusion, side = trainer.netG.eval(), spec["image_size"]

    def move(x, cond, row):
        level, of_x, of_eps, of_x0, of_x_t, sigma = row
        eps = diffusion.denoise_fn(torch.cat([cond, x], dim=1), level.expand(len(x), 1))
        return of_x0 * (of_x * x - of_eps * eps).clamp(-1, 1) + of_x_t * x + sigma * torch.randn_like(x)

    tuned_move = torch.compile(move) if "compile" in spec["tuned"] else move

    def shipped(x, cond, steps):
        for number in reversed(range(steps)):
            x, _ = diffusion.p_sample(x, number, condition_x=cond)
        return x

    def tuned(x, cond, steps):
        # As its p_sample, with the numbers of all steps on the device before the first.
        sigma = (0.5 * diffusion.posterior_log_variance_clipped).exp()
        sigma[0] = 0
        columns = (
            torch.tensor(diffusion.sqrt_alphas_cumprod_prev[1:], dtype=torch.float32, device=device),
            *(
                *(diffusion.sqrt_recip_alphas_cumprod, diffusion.sqrt_recipm1_alphas_cumprod),
                *(diffusion.posterior_mean_coef1, diffusion.posterior_mean_coef2, sigma),
            ),
        )
        for row in torch.stack(columns, dim=1).flip(0):
            x = tuned_move(x, cond, row)
        return x

    @torch.no_grad()
    def draw(steps, batch):
        # Fewer steps are another schedule there, from the same first to the same last beta.
        diffusion.set_new_noise_schedule(schedule_of(steps), device)
        cond = (torch.rand(batch, 3, side, side, device=device) * 2 - 1).to(memory_format=layout)
        synchronize(device)
        begun = time.perf_counter()
        with precision():
            x = (tuned if spec["tuned"] else shipped)(torch.randn_like(cond), cond, steps)
        pictures = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        taken = time.perf_counter() - begun
        assert pictures.shape == cond.shape
        return {"seconds": taken}

    warm = set()

    def reply(steps, batch):
        # What is compiled for the first batch is not told.
        for _ in range(0 if batch in warm else 2):
            draw(1, batch)
        warm.add(batch)
        return draw(steps, batch)

    return {"parameters": count_of(trainer)}, reply


def convolutions(spec: dict, device: str):
    """`reply(side, inputs, outputs)` with the seconds of a 3 x 3 convolution and of its two gradients."""
    torch.backends.cudnn.benchmark = True
    options = {"device": device, "dtype": torch.bfloat16 if spec["gpu"] else torch.float32}

    def seconds_of(call, calls=10, turns=3):
        taken = []
        for turn in range(turns + 1):
            begun = time.perf_counter()
            for _ in range(calls if turn else 1):
                call()
            synchronize(device)
            taken.append((time.perf_counter() - begun) / calls)
        return min(taken[1:])

    def reply(side, inputs, outputs):
        shapes = (
            (spec["batch_size"], inputs, side, side),
            (outputs, inputs, 3, 3),
            (spec["batch_size"], outputs, side, side),
        )
        x, kernel, cotangent = (torch.randn(shape, **options).to(memory_format=torch.channels_last) for shape in shapes)

        def gradient(*mask):
            return torch.ops.aten.convolution_backward(
                cotangent, x, kernel, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (*mask, False)
            )

        return {
            "forward": seconds_of(lambda: torch.nn.functional.conv2d(x, kernel, padding=1)),
            "input": seconds_of(lambda: gradient(True, False)),
            "kernel": seconds_of(lambda: gradient(False, True)),
        }

    return {}, reply


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


KINDS = {"step": step, "sampling": sampling, "convolutions": convolutions}


def find(official: Path) -> None:
    """Lets the official code be imported."""
    sys.path.insert(0, str(official / "sr3" if (official / "sr3").is_dir() else official))
    # Its files name them at the top and use them for progress bars, if at all.
    for name in ("torchvision", "tqdm"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name].tqdm = iter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", type=Path)
    parser.add_argument("--spec", type=json.loads, required=True)
    options = parser.parse_args()
    spec, device = options.spec, "cuda" if torch.cuda.is_available() else "cpu"
    if spec["gpu"] and device == "cpu":
        print(json.dumps({"not_measured": "PyTorch sees no GPU"}), flush=True)
        return
    if options.official:
        find(options.official)
    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    facts, reply = KINDS[spec["kind"]](spec, device)
    facts["device"] = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    facts["versions"] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(reply(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
