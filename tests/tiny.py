"""A config that trains in seconds."""

from pathlib import Path

from dream_jax.config import checks, command_line

ROOT = Path(__file__).resolve().parent.parent

TINY = (
    *("steps=1", "batch_size=4", "image_size=32", "log_every=1", "optimizer.learning_rate=0.0"),
    *("task.scale=2", "task.residual=True", "task.gain=4.0", "objective.kind=x0", "objective.distance=l2"),
    *("network.channels=8", "network.channel_multipliers=1,", "network.num_res_blocks=1"),
    *("network.norm_groups=4", "network.patch=2", "network.attention_resolutions=()"),
    *("samples.count=2", "samples.steps=1"),
    *("evaluation.samplers=ddim,", "evaluation.steps=1,", "evaluation.pictures=2", "evaluation.batch_size=2"),
)
# Changes for a model that makes pictures from nothing. Tests that train one, whichever, share what it compiles.
UNCONDITIONAL = "task.name=unconditional", "task.residual=False", "objective.kind=v", "schedule.num_steps=100"
# Changes for steps of the loss that has most in it.
SMALL = "image_size=16", "network.dropout=0.2", "data.flip=False", "objective.distance=l1"


def tiny_config(*changes: str):
    """configs/base.py at its smallest: one step of x0 residuals at learning rate 0, 2x, crops of 32 pixels.

    changes are given as "steps=4", "network.patch=1", ...
    """
    base = command_line.load(ROOT / "configs" / "base.py")
    return checks.validate(command_line.override(base, [f"--config.{change}" for change in (*TINY, *changes)]))
