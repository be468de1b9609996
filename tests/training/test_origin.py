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
    later = "start_step", "stop_step", "estimate_every", "noise", "estimate_noise", "perturbation", "rollout", "span"
    later_data = "crop", "limit", "channels", "bits", "range", "percentile", "clip", "lr_key"
    of_processes = "kappa", "sqrt_eta_start", "sqrt_eta_end", "power", "sum_scale", "max_sigma", "alpha_end"
    objective = {key: value for key, value in config["objective"].items() if key not in later}
    data = {key: value for key, value in config["data"].items() if key not in later_data}
    schedule = {key: value for key, value in config["schedule"].items() if key not in of_processes}
    older = config | {"objective": objective, "data": data, "schedule": schedule}
    origin.check(about | {"config": older}, about, "here")
