"""The official PyTorch networks of SR3 and DREAM: their weights' names and shapes, and ours."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dream_jax.errors import UserError, some
from dream_jax.networks import parameters
from dream_jax.networks.sr3 import SR3UNet

# Before the network's names in files, beside the buffers of the diffusion process.
PREFIX = "denoise_fn."

# The official networks have 14 blocks and convolutions on the way down; each takes time to make.
_DEEPEST = 60

# Layers over channels that are convolutions of 1 x 1 pixels there.
_POINTWISE = (".attn.qkv", ".attn.out", ".res_conv")


def load_sr3(state_dict: Mapping[str, np.ndarray], norm_groups: int = 32) -> tuple[SR3UNet, dict]:
    """Turns the official code's SR3 weights into (network, params): float32 numpy arrays for `network.apply`.

    Args:
        state_dict: names as in the official repository -> arrays in PyTorch's layout (OIHW kernels). Where names start
            with "denoise_fn." the others, buffers of the diffusion process, are ignored.
        norm_groups: the one hyperparameter that no name or shape shows; the official configurations use 32, its small
            ones 16. Dropout neither shows: it is 0 (`network.clone(dropout=0.2)` to train on).

    Raises:
        UserError: for a missing, surplus, wrongly shaped or non-finite array, by name.
    """
    weights = {name: np.asarray(a) for name, a in state_dict.items()}
    if any(name.startswith(PREFIX) for name in weights):
        weights = {name.removeprefix(PREFIX): a for name, a in weights.items() if name.startswith(PREFIX)}
    network = _read_off(weights, norm_groups)

    size, channels = network.divisor, weights["downs.0.weight"].shape[1]
    shapes = parameters.shapes_of(network, (1, size, size, channels))
    modules = official_modules(network)
    params, unused = {}, set(weights)
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        kind = "bias" if path[-1] == "bias" else "weight"
        name = f"{modules['/'.join(path[:-1])]}.{kind}"
        params[path] = _from_pytorch(name, _find(weights, name), leaf.shape)
        unused.discard(name)
    if unused:
        raise UserError(f"{some(unused)} among the weights: no such array in an SR3 network like the others make up")
    return network, traverse_util.unflatten_dict(params)


def to_state_dict(network: SR3UNet, params) -> dict[str, np.ndarray]:
    """The inverse of `load_sr3`: float32 arrays in PyTorch's layout, by the official code's names.

    Args:
        network: whose parameters they are.
        params: its parameters, as `network.init` makes them.

    Raises:
        UserError: for a network that the official code does not have.
    """
    if network.patch != 1:
        raise UserError(f"network.patch = {network.patch}: the official network works on single pixels, patch 1, only")
    modules = official_modules(network)
    state = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        module = modules["/".join(path[:-1])]
        array = np.asarray(leaf, np.float32)
        array = array.transpose({1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[array.ndim])
        if array.ndim == 2 and module.endswith(_POINTWISE):
            array = array[:, :, None, None]
        state[f"{module}.{'bias' if path[-1] == 'bias' else 'weight'}"] = np.ascontiguousarray(array)
    return state


def diffusion_buffers(betas: np.ndarray) -> dict[str, np.ndarray]:
    """The float32 buffers [T] of the official code's diffusion process, which its files hold beside the network.

    The variance and mean of q(x_{t-1} | x_t, x_0) are Ho et al. 2020, equations 6 and 7.

    Args:
        betas: float64 [T], of the noise schedule.
    """
    alphas = 1 - betas
    kept = np.cumprod(alphas)
    before = np.append(1.0, kept[:-1])
    variance = betas * (1 - before) / (1 - kept)
    buffers = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "log_one_minus_alphas_cumprod": np.log(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - kept),
        "posterior_mean_coef2": (1 - before) * np.sqrt(alphas) / (1 - kept),
    }
    return {name: array.astype(np.float32) for name, array in buffers.items()}


def _read_off(weights, norm_groups) -> SR3UNet:
    """The network that names and shapes describe; what is inconsistent shows when the arrays are taken one by one."""
    inner = _shape(weights, "downs.0.weight", 4)[0]
    depth = max((int(m[1]) for name in weights if (m := re.match(r"downs\.(\d{1,4})\.", name))), default=0)
    if depth > _DEEPEST:
        raise UserError(f"the weights do not make up an SR3 network: downs.{depth} is far too deep")
    levels, attention = [[]], set()
    for i in range(1, depth + 1):
        if f"downs.{i}.conv.weight" in weights:
            levels.append([])
        else:
            levels[-1].append(_shape(weights, f"downs.{i}.res_block.block1.block.3.weight", 4)[0])
            if f"downs.{i}.attn.qkv.weight" in weights:
                attention.add(len(levels) - 1)
    if len(levels) > 10 or any(not blocks or blocks[0] % inner for blocks in levels):
        raise UserError(
            f"the weights do not make up an SR3 network: blocks of {levels} channels at its levels, "
            f"which should all be multiples of the {inner} of downs.0.weight"
        )
    return SR3UNet(
        inner_channels=inner,
        channel_multipliers=tuple(blocks[0] // inner for blocks in levels),
        attention_levels=tuple(sorted(attention)),
        num_res_blocks=len(levels[0]),
        norm_groups=norm_groups,
        out_channels=_shape(weights, "final_conv.block.3.weight", 4)[0],
    )


def official_modules(network: SR3UNet) -> dict[str, str]:
    """Path of each of our modules that has parameters -> its name in the official code."""
    names = {
        "level_0": "noise_level_mlp.1",
        "level_1": "noise_level_mlp.3",
        "conv_in": "downs.0",
        "norm_out": "final_conv.block.0",
        "conv_out": "final_conv.block.3",
    }
    levels = range(len(network.channel_multipliers))
    down = [f"down_{i}_{j}" for i in levels for j in [*range(network.num_res_blocks), "conv"]][:-1]
    up = [f"up_{i}_{j}" for i in reversed(levels) for j in [*range(network.num_res_blocks + 1), "conv"]][:-1]
    places = {ours: f"downs.{k}" for k, ours in enumerate(down, start=1)}
    places |= {ours: f"ups.{k}" for k, ours in enumerate(up)}
    places |= {"mid_0": "mid.0", "mid_1": "mid.1"}
    inside = {
        "/norm_0": "res_block.block1.block.0",
        "/conv_0": "res_block.block1.block.3",
        "/level": "res_block.noise_func.noise_func.0",
        "/norm_1": "res_block.block2.block.0",
        "/conv_1": "res_block.block2.block.3",
        "/shortcut": "res_block.res_conv",
        "_attention/norm": "attn.norm",
        "_attention/qkv": "attn.qkv",
        "_attention/out": "attn.out",
        "": "conv",
    }
    for ours, theirs in places.items():
        names |= {ours + ours_inside: f"{theirs}.{theirs_inside}" for ours_inside, theirs_inside in inside.items()}
    return names


def _find(weights, name) -> np.ndarray:
    if name not in weights:
        raise UserError(f"the weights lack {name}: is it a complete state dict of the official SR3 or DREAM network?")
    return weights[name]


def _shape(weights, name, ndim) -> tuple[int, ...]:
    shape = np.shape(_find(weights, name))
    if len(shape) != ndim or 0 in shape:
        raise UserError(f"{name} among the weights has the shape {shape}; {ndim} dimensions above 0 were expected")
    return shape


def _from_pytorch(name, array, shape) -> np.ndarray:
    """The array in our layout: OIHW -> HWIO, [out, in] -> [in, out], 1 x 1 kernels -> [in, out]."""
    official = {1: shape, 2: shape[::-1], 4: (*shape[:1:-1], *shape[:2])}[len(shape)]
    pointwise = official if len(shape) != 2 else (*official, 1, 1)
    if array.shape not in (official, pointwise):
        raise UserError(f"{name} among the weights has the shape {array.shape}; {official} was expected")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} among the weights has the type {array.dtype}, which is no floating point")
    array = np.asarray(array, np.float32).reshape(official)
    if not np.isfinite(array).all():
        raise UserError(f"{name} among the weights holds values that are not finite: the file is no use")
    return np.ascontiguousarray(array.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)]))
