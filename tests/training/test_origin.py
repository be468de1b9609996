import pytest
import tiny

from dream_jax.errors import UserError
from dream_jax.training import origin


def test_a_checkpoint_of_other_data_or_of_another_config_is_not_continued():
    config = tiny.tiny_config().to_dict()
    about = {"config": config, "data": "2 pictures, crc32 00000001"}
    origin.check(about, about, "here")
    origin.check(about, about | {"config": config | {"steps": 9}}, "here")
    moved = {"log_every": 7, "data": config["data"] | {"folder": "elsewhere", "eval_folder": "there"}}
    origin.check(about, about | {"config": config | moved}, "here")
    with pytest.raises(UserError, match=r"training pictures: 2 .* -> 3 .*GIF.*move them out"):
        origin.check(about, about | {"data": "3 pictures, crc32 00000001"}, "here")
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        origin.check(about, about | {"config": config | {"seed": 1}}, "here")
    # Keys that came later.
    later = {
        "objective": "start_step stop_step estimate_every noise estimate_noise perturbation rollout span",
        "data": "crop limit channels bits range percentile clip lr_key bundled classes condition_channels "
        "condition_bits condition_range",
        "task": "target num_classes drop_label masks unknown blurs width length deviation quality",
        "schedule": "kappa sqrt_eta_start sqrt_eta_end power sum_scale max_sigma alpha_end",
    }
    older = {
        section: {key: value for key, value in config[section].items() if key not in keys.split()}
        for section, keys in later.items()
    }
    origin.check(about | {"config": config | older}, about, "here")
