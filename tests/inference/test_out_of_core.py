import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_ins
import tiny

from dream_jax import experiment, sampling
from dream_jax.errors import UserError
from dream_jax.inference import bands, drawing, out_of_core, tiles
from dream_jax.runtime import sharding

KEY, NUMBER, SIDES = drawing.make_key(5), 3, (100, 72)


def network(x_t, level):
    """Of a point and of its whole tile."""
    return jnp.tanh(x_t) * (1 - 0.5 * level[:, None, None, None]) + 0.3 * x_t.mean((1, 2, 3), keepdims=True)


@pytest.fixture(scope="module")
def model():
    return stand_ins.fake(network, "task.gain=1.0", "sampling.eps_scale=1.01")


COND = np.random.default_rng(1).uniform(-1, 1, (*SIDES, 3)).astype(np.float32)


def block_noise(key, index, row, shape):
    """What the module's text says of the noise; in the place of `sampling.noise`."""
    key = jax.random.fold_in(jax.random.fold_in(key, index[0]), row)
    side = out_of_core.BLOCK
    down, across = (jnp.arange(-(-length // side)) for length in shape[1:3])
    keys = jax.vmap(lambda i: jax.vmap(lambda j: jax.random.fold_in(jax.random.fold_in(key, i), j))(across))(down)
    blocks = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (side, side, shape[3]))))(keys)
    whole = blocks.transpose(0, 2, 1, 3, 4).reshape(len(down) * side, len(across) * side, shape[3])
    return whole[None, : shape[1], : shape[2]]


def in_memory(model, rows, monkeypatch, crop=None):
    monkeypatch.setattr(sampling, "noise", block_noise)
    experiment = model.experiment
    denoise = drawing.make_denoise(
        experiment, model.params, {"cond": COND[None]}, lambda predict: tiles.tiled(predict, 32, 8, 4, crop=crop)
    )
    start, shows = drawing.start_key_of(experiment), experiment.objective.self_conditions
    x0 = sampling.run(KEY, denoise, (1, *SIDES, 3), rows, np.array([NUMBER]), start, shows=shows)
    return np.asarray(experiment.task.to_picture(x0, COND[None]))[0]


def out_of_memory(model, rows, folder, group=1, crop=None):
    plan = out_of_core.Plan(SIDES, 32, 8, 4, group, crop=crop)
    shares = []
    strips = list(out_of_core.draw(model, rows, plan, lambda a, b: COND[a:b], NUMBER, KEY, folder, shares.append))
    assert sum(shares) == pytest.approx(len(rows.alpha))
    assert not list(folder.iterdir())
    return np.concatenate(strips)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_3m", "heun"])
def test_the_result_is_that_of_tiles_in_memory(sampler, model, tmp_path, monkeypatch):
    rows = drawing.make_rows(model.experiment, sampler, 4)
    found, expected = out_of_memory(model, rows, tmp_path), in_memory(model, rows, monkeypatch)
    assert found.shape == (*SIDES, 3) and np.abs(np.diff(expected, axis=0)).mean() > 0.01
    # Heun's steps multiply rounding by up to 20.
    np.testing.assert_allclose(found, expected, atol=2e-4 if sampler == "heun" else 1e-5)


def test_so_it_is_where_a_process_starts_from_less_noise(tmp_path, monkeypatch):
    process = "schedule.name=ir_sde", "schedule.num_steps=9", "evaluation.steps=1,"
    model = stand_ins.fake(network, "task.gain=1.0", *process)
    rows = drawing.make_rows(model.experiment, "ddpm", 4)
    assert 0.99 < rows.start < 0.999
    found, expected = out_of_memory(model, rows, tmp_path), in_memory(model, rows, monkeypatch)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_so_it_is_with_what_is_shown_and_a_start_for_all(tmp_path, monkeypatch):
    model = stand_ins.fake(network, "task.gain=1.0", "objective.name=self_conditioning", "sampling.start_seed=4")

    class Network:
        divisor = model.experiment.network.divisor
        told = model.experiment.network.told

        def apply(self, variables, inputs, level, dropout_keys=None):
            assert inputs.shape[-1] == 9
            return network(inputs[..., 6:], level) + 0.2 * inputs[..., 3:6]

    model = model._replace(experiment=model.experiment._replace(network=Network()))
    rows = drawing.make_rows(model.experiment, "ddim", 3)
    found, expected = out_of_memory(model, rows, tmp_path), in_memory(model, rows, monkeypatch)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_so_it_is_with_norms_judged_by_a_sample(tmp_path, monkeypatch):
    built = experiment.build(tiny.tiny_config("objective.name=self_conditioning", "task.gain=1.0"))
    params = stand_ins.random_params(built, np.random.default_rng(0))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model = drawing.Model(built, params, 1, mesh, "nowhere")
    rows = drawing.make_rows(built, "ddpm", 2)
    expected = in_memory(model, rows, monkeypatch, crop=8)
    found = out_of_memory(model, rows, tmp_path, 2, crop=8)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - out_of_memory(model, rows, tmp_path)).mean() > 0.003


def test_the_result_does_not_depend_on_strips_and_groups(model, tmp_path, monkeypatch):
    rows = drawing.make_rows(model.experiment, "ddpm", 2)
    whole = np.random.default_rng(2).standard_normal((3, 200, SIDES[1], 3)).astype(np.float32)
    monkeypatch.setattr(
        out_of_core, "_make_noise", lambda *_: lambda row, seed=None: lambda a, b: whole[min(row, 2), a:b]
    )
    first = out_of_memory(model, rows, tmp_path)
    for block, group in ((24, 2), (7, 5)):
        monkeypatch.setattr(out_of_core, "BLOCK", block)
        np.testing.assert_allclose(out_of_memory(model, rows, tmp_path, group), first, atol=1e-5)


def test_noise_is_standard_normal_and_of_its_place_alone(model):
    make = out_of_core._make_noise
    wide, narrow = (make(model.experiment, NUMBER, KEY, width)(0) for width in (200, 72))
    np.testing.assert_array_equal(wide(30, 150)[:, :72], narrow(30, 150))
    np.testing.assert_array_equal(wide(30, 150)[40:], wide(70, 150))
    expected = block_noise(KEY, [NUMBER], 0, (1, 100, 72, 3))[0]
    np.testing.assert_array_equal(narrow(0, 100), expected)
    values = wide(0, 192).astype(float)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    others = [make(model.experiment, *other, 72)(row) for other, row in (((NUMBER, KEY), 1), ((4, KEY), 0))]
    for other in others:
        assert abs(np.corrcoef(other(0, 100).ravel(), narrow(0, 100).ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("shows", [False, True])
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_what_is_not_needed_may_be_anything(sampler, shows, model):
    rows = drawing.make_rows(model.experiment, sampler, 7)
    outs = np.random.default_rng(0).standard_normal(len(rows.alpha))
    state = {"base": 1.0, "y": 1.0, "out": 0.0} | {f"h{i}": 0.0 for i in range(sampling.HISTORY)}
    needed = out_of_core.needed(rows, shows)
    full = dict(state)
    for number, (names, out) in enumerate(zip(needed, outs, strict=True)):
        row = sampling.Rows(*(part[number] for part in rows[:5]))
        state = {name: value if name in names else np.nan for name, value in state.items()}
        if "y" not in names:
            state["y"] = state["base"]
        for values in state, full:
            seen = out * values["y"] + (values["out"] if shows else 0)
            history = [values[f"h{i}"] for i in range(sampling.HISTORY)]
            # As zeros are what is not kept is read.
            history = [0 if np.isnan(value) else value for value in history]
            base = 0 if np.isnan(values["base"]) else values["base"]
            base, y, history = sampling.advance(row, base, values["y"], history, seen, 0.5)
            values.update({"base": base, "y": y, "out": seen} | {f"h{i}": value for i, value in enumerate(history)})
    assert state["y"] == full["y"]


def test_one_step_keeps_nothing_and_one_picture_does_for_first_order(model):
    def kept(sampler, steps):
        return out_of_core.slots(drawing.make_rows(model.experiment, sampler, steps), False)

    assert kept("ddim", 1) == [] and kept("ddim", 10) == kept("ddpm", 10) == ["base"]
    assert kept("dpmpp_2m", 10) == ["base", "h0"]


@pytest.mark.parametrize("change", ["sampling.project=True", "sampling.clip=dynamic", "sampling.shift_window=9"])
def test_what_needs_the_whole_picture_is_refused(change):
    with pytest.raises(UserError, match="needs the picture as a whole"):
        out_of_core.check_sampling(stand_ins.fake(network, change).experiment.config.sampling)


def test_plans_fit_or_say_what_is_needed(model):
    wide = out_of_core.find_plan(model, (10_000, 10_000), 2**40)
    assert wide.tile == 512 and wide.sides == (20_000, 20_000)
    tight = out_of_core.find_plan(model, (10_000, 10_000), wide.used / 2)
    assert tight.tile < 512 and tight.used <= wide.used / 2
    # The height costs nothing.
    assert out_of_core.find_plan(model, (10**6, 10_000), 2**40).used == wide.used
    with pytest.raises(UserError, match=r"take 0\.\d+ GiB even in windows"):
        out_of_core.find_plan(model, (10_000, 10_000), 2**20)
    assert out_of_core.find_plan(model, (100, 100), 2**20, tile=64).tile == 64


def test_memory_for_bands_does_not_grow_with_the_height(model):
    # What is read is the most that is there at once, of x and of cond.
    read = []

    def cond_rows(start, stop):
        read.append(stop - start)
        return COND[start:stop]

    rows = drawing.make_rows(model.experiment, "ddim", 1)
    plan = out_of_core.Plan(SIDES, 16, 4, 4, 1)
    for _ in out_of_core.draw(model, rows, plan, cond_rows, NUMBER, KEY, "."):
        pass
    assert max(read) == 16 and sum(read) == SIDES[0]
    assert bands.BLOCK == out_of_core.BLOCK
