import json

import numpy as np
import pytest
import safetensors.numpy
import stand_ins
import tiny
from rich.console import Console

from dream_jax import experiment
from dream_jax.errors import UserError
from dream_jax.files import tensors, torch_archive
from dream_jax.networks import pytorch
from dream_jax.sharing import exporting, official
from dream_jax.training import published_weights

OFFICIAL = "network.patch=1", "network.channel_multipliers=1,2", "network.attention_resolutions=16"
THEIRS = "objective.kind=eps", "task.residual=False"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of a network that the official code has, with random weights, and its state; not to be changed."""
    return stand_ins.untrained_run(tmp_path_factory.mktemp("official") / "run", 7, *OFFICIAL, *THEIRS)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_back_to_the_bit(run, suffix, tmp_path, capsys):
    workdir, state = run
    exporting.export(workdir, tmp_path / f"w{suffix}", Console(soft_wrap=True), "pytorch_sr3")
    arrays = tensors.read_weights(tmp_path / f"w{suffix}")
    network, params = pytorch.load_sr3(arrays, norm_groups=4)
    tree_equal(params, state.ema)
    config = tiny.tiny_config(*OFFICIAL, f"init.path={tmp_path}/w{suffix}")
    tree_equal(published_weights.arrays_of(experiment.build(config), config.init.path), state.ema)
    said = capsys.readouterr().out
    told = json.loads(said[said.index('"unet": ') + len('"unet": ') :].partition("\n")[0])
    assert told == {
        **{"in_channel": 6, "out_channel": 3, "inner_channel": 8, "norm_groups": 4, "channel_multiplier": [1, 2]},
        **{"attn_res": [16], "res_blocks": 1},
    }
    assert "warning" not in said and network.num_res_blocks == 1


def tree_equal(ours, theirs):
    ours, theirs = (dict(tensors_of(tree)) for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def tensors_of(tree, at=""):
    for name, inner in tree.items():
        yield from tensors_of(inner, f"{at}.{name}") if isinstance(inner, dict) else [(f"{at}.{name}", inner)]


def test_the_buffers_say_the_schedule_of_the_run():
    """Each against what it is for: q(x_t | x_0), x_0 from the noise, and q(x_{t-1} | x_t, x_0)."""
    schedule = experiment.build(tiny.tiny_config()).schedule
    buffers = pytorch.diffusion_buffers(np.linspace(1e-6, 1e-2, 2000))
    assert all(array.dtype == np.float32 and array.shape == (2000,) for array in buffers.values())
    before, after, b = (
        schedule.alphas_bar[:-1],
        schedule.alphas_bar[1:],
        {k: v.astype(float) for k, v in buffers.items()},
    )
    np.testing.assert_allclose(b["alphas_cumprod"], after, rtol=1e-6)
    np.testing.assert_allclose(b["sqrt_alphas_cumprod"] ** 2 + b["sqrt_one_minus_alphas_cumprod"] ** 2, 1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(b["log_one_minus_alphas_cumprod"]), 1 - after, rtol=1e-5)
    x_0, eps = 0.3, -1.2
    x_t = np.sqrt(after) * x_0 + np.sqrt(1 - after) * eps
    np.testing.assert_allclose(
        b["sqrt_recip_alphas_cumprod"] * x_t - b["sqrt_recipm1_alphas_cumprod"] * eps, x_0, atol=1e-4
    )
    # The posterior of x_0 and the clean x_t = sqrt(a) x_0 is at the clean x_{t-1}; it and its variance keep the
    # marginal's variance.
    mean = b["posterior_mean_coef1"] + b["posterior_mean_coef2"] * np.sqrt(after)
    np.testing.assert_allclose(mean, np.sqrt(before), rtol=1e-5)
    variance = b["posterior_mean_coef2"] ** 2 * (1 - after) + b["posterior_variance"]
    np.testing.assert_allclose(variance, 1 - before, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.exp(b["posterior_log_variance_clipped"])[1:], b["posterior_variance"][1:], rtol=1e-5)
    assert b["posterior_variance"][0] == 0 and np.isfinite(b["posterior_log_variance_clipped"][0])
    np.testing.assert_array_equal(buffers["alphas_cumprod_prev"][1:], buffers["alphas_cumprod"][:-1])
    np.testing.assert_array_equal(buffers["betas"], np.linspace(1e-6, 1e-2, 2000).astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "output", "reason"),
    [
        (("network.patch=2",), "w.pth", "network.patch = 2: the official network works on single pixels"),
        (("objective.name=self_conditioning",), "w.pth", "shows a network no estimate"),
        (("network.name=generation", "task.residual=False"), "w.pth", "no network generation"),
        ((), "w.bin", r"end it in \.safetensors or \.pth"),
        ((), "w", r"end it in \.safetensors or \.pth"),
    ],
)
def test_what_the_official_code_does_not_have_is_refused(changes, output, reason, tmp_path):
    built = experiment.build(tiny.tiny_config("network.patch=1", "network.num_heads=4", *changes))
    with pytest.raises(UserError, match=reason):
        official.check(built, tmp_path / output, {})


def test_what_it_would_misunderstand_is_told(tmp_path, capsys):
    changes = "network.patch=1", "schedule.name=cosine", "task.name=denoising"
    workdir, _ = stand_ins.untrained_run(tmp_path / "run", 1, *changes)
    exporting.export(workdir, tmp_path / "w.safetensors", Console(soft_wrap=True), "pytorch_sr3")
    said = capsys.readouterr().out
    told = ("objective.kind = x0", "task.residual = True", "schedule.name = cosine", "task.name = denoising")
    assert all(f"warning: {key}" in said for key in told) and said.count("warning") == len(told)
    names = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    assert all(name.startswith("denoise_fn.") for name in names)


def test_a_torch_archive_holds_arrays_of_any_shape(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (3, 4, 2, 2), "b": (5,), "ü": (2, 3), "scalar": (), "empty": (0, 4)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    # Of another layout in memory.
    arrays["c"] = arrays["a.weight"].transpose(3, 0, 1, 2)
    (tmp_path / "w.pth").write_bytes(torch_archive.to_bytes(arrays))
    back = tensors.read_weights(tmp_path / "w.pth")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    assert torch_archive.to_bytes(arrays) == torch_archive.to_bytes(dict(arrays))
