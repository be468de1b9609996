"""The networks that benchmarks measure."""

_SR3 = {
    "channels": 64,
    "channel_multipliers": [1, 2, 4, 8, 8],
    "attention_resolutions": [16],
    "num_res_blocks": 2,
    "norm_groups": 32,
    "dropout": 0.2,
}
PRESETS = {
    # The published one, of 97.8 million parameters.
    "paper": _SR3 | {"image_size": 128, "scale": 8, "batch_size": 64},
    # For CPUs.
    "small": _SR3
    | {"channels": 32, "channel_multipliers": [1, 2, 4, 8], "norm_groups": 16}
    | {"image_size": 64, "scale": 4, "batch_size": 8},
    # To see that a benchmark runs.
    "tiny": _SR3
    | {"channels": 8, "channel_multipliers": [1, 2], "attention_resolutions": [], "num_res_blocks": 1}
    | {"norm_groups": 4, "image_size": 16, "scale": 2, "batch_size": 4},
}


def make_config(spec: dict):
    """The config of a preset with an objective, and of what else the spec names."""
    from configs import base
    from dream_jax.config import checks

    config = base.get_config()
    config.batch_size, config.image_size = spec["batch_size"], spec["image_size"]
    config.accumulation = spec.get("accumulation", 1)
    config.task.scale = spec["scale"]
    config.objective.name = spec["objective"]
    if spec["objective"] == "conservative_dream":
        config.task.name = "unconditional"
        config.objective.distance = "l2"
        config.schedule.continuous = False
    for name in _SR3:
        value = spec[name]
        config.network[name] = tuple(value) if isinstance(value, list) else value
    return checks.validate(config)
