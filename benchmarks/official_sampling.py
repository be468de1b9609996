"""Sampling by the official PyTorch DREAM code, for `benchmarks.sampling`, which starts this file.

    python benchmarks/official_sampling.py --official PATH --spec JSON

runs with a Python that has PyTorch, and needs nothing of JAX or of this project. Network, noise schedule and the move from
one level to the next are those of the code at PATH. Its own loop divides by zero below 500 steps, where it counts which
pictures to keep, so the loop around its `p_sample` is here. Prints one line of facts, then answers each line
{"steps": N, "batch": B} of its standard input with the seconds that B pictures in N steps took.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--spec", type=json.loads, required=True)
    options = parser.parse_args()
    spec = options.spec
    root = options.official / "sr3" if (options.official / "sr3").is_dir() else options.official
    sys.path.insert(0, str(root))
    # Its files name them at the top and use them for progress bars, if at all.
    for name, content in (("torchvision", {}), ("tqdm", {"tqdm": iter})):
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(content)
    import model as official

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion = official.create_model(options_of(spec, device)).netG.eval()
    facts = {
        "parameters": sum(p.numel() for p in diffusion.parameters()),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    print(json.dumps(facts), flush=True)

    side = spec["image_size"]
    for line in sys.stdin:
        case = json.loads(line)
        # Fewer steps are another schedule there, from the same first to the same last beta.
        diffusion.set_new_noise_schedule(schedule_of(case["steps"]), device)
        cond = torch.rand(case["batch"], 3, side, side, device=device) * 2 - 1
        begun = time.perf_counter()
        x = torch.randn_like(cond)
        for number in reversed(range(case["steps"])):
            x, _ = diffusion.p_sample(x, number, condition_x=cond)
        # Ours ends in pictures on the host too.
        pictures = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        taken = time.perf_counter() - begun
        assert pictures.shape == cond.shape
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
