import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from rich.console import Console

from benchmarks.torch_files import official_weights
from dream_jax import commands
from dream_jax.errors import UserError
from dream_jax.inference import trained
from dream_jax.networks import pytorch
from dream_jax.training import flat

REFERENCE = pathlib.Path(__file__).parents[2] / "../shared/reference/sr3_unet.npz"


@pytest.mark.parametrize(
    ("inner", "multipliers", "attention", "blocks", "channels"),
    [(8, (1, 2), (1,), 1, 6), (4, (1, 2, 2), (), 2, 3), (8, (2,), (0,), 1, 4), (4, (1, 2, 4), (0, 2), 1, 6)],
)
def test_hyperparameters_are_read_off(inner, multipliers, attention, blocks, channels):
    weights = official_weights(inner, multipliers, attention, blocks, channels)
    network, params = pytorch.load_sr3(weights, norm_groups=4)
    assert (network.inner_channels, network.channel_multipliers) == (inner, multipliers)
    assert (network.attention_levels, network.num_res_blocks, network.norm_groups) == (attention, blocks, 4)
    assert sum(p.size for p in jax.tree.leaves(params)) == sum(w.size for w in weights.values())
    np.testing.assert_array_equal(
        params["conv_in"]["kernel"], np.einsum("oihw->hwio", weights["downs.0.weight"], optimize=False)
    )
    np.testing.assert_array_equal(
        params["mid_0_attention"]["qkv"]["kernel"], weights["mid.0.attn.qkv.weight"][:, :, 0, 0].T
    )


def test_prefix_and_buffers():
    weights = official_weights()
    whole = {"denoise_fn." + name: a for name, a in weights.items()} | {"betas": np.zeros(3), "sqrt_recip": np.ones(2)}
    plain, prefixed = (pytorch.load_sr3(w, 4)[1] for w in (weights, whole))
    jax.tree.map(np.testing.assert_array_equal, plain, prefixed)
    halves = {name: a.astype(np.float16) for name, a in weights.items()}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(pytorch.load_sr3(halves, 4)[1]))


@pytest.mark.parametrize("name", ["downs.0.weight", "final_conv.block.3.weight", "ups.1.res_block.block1.block.3.bias"])
def test_what_is_wrong_is_named(name):
    weights = official_weights()
    without = {n: a for n, a in weights.items() if n != name}
    for bad in (
        without,
        {**weights, name: weights[name][..., None]},
        {**weights, name: weights[name][:0]},
        {**weights, name: np.full_like(weights[name], np.nan)},
        {**weights, name: weights[name].astype(np.int32)},
    ):
        with pytest.raises(UserError, match=name):
            pytorch.load_sr3(bad, 4)
    with pytest.raises(UserError, match=r"ups\.77\.conv\.weight"):
        pytorch.load_sr3({**weights, "ups.77.conv.weight": np.ones(3)}, 4)
    with pytest.raises(UserError, match="norm_groups"):
        pytorch.load_sr3(weights, 3)
    with pytest.raises(UserError, match=r"downs\.0"):
        pytorch.load_sr3({}, 4)


def test_training_starts_from_the_weights_of_a_file(tmp_path):
    weights = official_weights()
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")
    changes = "network.patch=1", "network.channel_multipliers=1,2", "network.attention_resolutions=16"
    changes = *changes, f"network.weights={tmp_path}/w.safetensors"
    config = tiny.tiny_config(*changes, "steps=0")
    state = commands.train_and_evaluate(config, tmp_path / "run", Console(quiet=True), evaluates=False)
    _, params = pytorch.load_sr3(weights, config.network.norm_groups)
    chex.assert_trees_all_equal(flat.trees(state.params), params)
    chex.assert_trees_all_equal(jax.device_get(trained.load(tmp_path / "run").params), params)
    with pytest.raises(UserError, match=r"network\.channels=8"):
        commands.train_and_evaluate(
            tiny.tiny_config(*changes, "network.channels=16"), tmp_path / "b", Console(quiet=True)
        )


@pytest.mark.skipif(not REFERENCE.exists(), reason="needs ../shared/reference/sr3_unet.npz beside the repository")
@pytest.mark.usefixtures("optimized")
def test_outputs_and_gradients_are_the_official_ones():
    with np.load(REFERENCE) as z:
        z = dict(z)
    weights = {n.removeprefix("state_dict/"): a for n, a in z.items() if n.startswith("state_dict/")}
    network, params = pytorch.load_sr3(weights, norm_groups=int(z["norm_groups"]))
    x = z["x_nchw"].transpose(0, 2, 3, 1)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params):
        def loss(params):
            y = network.apply({"params": params}, x, z["sqrt_alpha_bar"])
            return jnp.mean(y**2), y

        return jax.grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        gradients, y = run(params)
    assert np.abs(y - z["y_nchw"].transpose(0, 2, 3, 1)).max() <= 1e-4 * np.abs(z["y_nchw"]).max()

    # Through the loader's own names: the norms keep under its transpositions.
    norms = {n.split("/denoise_fn.")[-1]: float(a) for n, a in z.items() if n.startswith("grad_norm/")}
    modules = pytorch.official_modules(network)
    ours = {}
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        *module, leaf = (entry.key for entry in path)
        ours[f"{modules['/'.join(module)]}.{'bias' if leaf == 'bias' else 'weight'}"] = float(np.linalg.norm(g))
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        assert abs(ours[name] - norm) <= 1e-3 * norm, name


def test_weights_go_back_to_the_official_names_and_layouts():
    weights = official_weights(8, (1, 2), (1,), 1, 6)
    network, params = pytorch.load_sr3(weights, norm_groups=4)
    back = pytorch.to_state_dict(network, params)
    assert {name: array.shape for name, array in back.items()} == {name: a.shape for name, a in weights.items()}
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name])
