import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_ins
import tiny

from dream_jax import experiment, sampling
from dream_jax.errors import UserError
from dream_jax.inference import drawing, out_of_core, tiles
from dream_jax.runtime import sharding

KEY = jax.random.key(0, impl="threefry2x32")
CHANGES = (
    *("task.name=class_conditional", "task.num_classes=3", "task.residual=False", "image_size=16"),
    *("network.patch=1", "schedule.num_steps=50", "sampling.clip=none"),
)
LABELS = np.array([0, 2], np.uint16)[:, None, None, None]


def linear(*changes, kind="x0"):
    """An experiment whose network is linear in x and in the planes of classes."""
    built = experiment.build(tiny.tiny_config(*CHANGES, f"objective.kind={kind}", *changes))

    class Network:
        divisor = 1

        def told(self, schedule, alpha):
            return alpha

        def apply(self, variables, inputs, level, dropout_keys=None):
            planes, rest = inputs[..., :3], inputs[..., 3:]
            return 0.3 * rest[..., -3:] + 0.1 * rest[..., :3] + planes * jnp.array([0.2, -0.4, 0.5])[None, None, None]

    return built._replace(network=Network())


def x0_hats(built, cond, alpha=0.6):
    x = jax.random.normal(KEY, (2, 16, 16, 3))
    denoise = drawing.make_denoise(built, {}, {"cond": cond})
    shows = [0.3 * x] if built.objective.self_conditions else []
    return denoise(x, alpha, np.sqrt(1 - alpha**2), *shows)


@pytest.mark.parametrize("objective", ["standard", "self_conditioning"])
@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_guidance_goes_from_the_prediction_without_a_class_towards_that_with_it(kind, objective):
    changes = (f"objective.name={objective}",)
    plain = linear(*changes, kind=kind)
    cond = plain.task.condition(LABELS, (16, 16))
    told, free = x0_hats(plain, cond), x0_hats(plain, jnp.zeros_like(cond))
    assert float(abs(told - free).max()) > 0.1
    for weight in (0.0, 0.5, 3.0):
        guided = x0_hats(linear(*changes, f"sampling.guidance={weight}", kind=kind), cond)
        np.testing.assert_allclose(guided, free + weight * (told - free), atol=1e-5)


def test_a_guidance_of_one_is_none():
    """To the letter: the same program, with one evaluation a step."""
    texts, flops = [], []
    for change in ("sampling.clip=none", "sampling.guidance=1.0", "sampling.guidance=1.5"):
        built = experiment.build(tiny.tiny_config(*CHANGES, change))
        params = jax.eval_shape(lambda b=built: b.network.init(KEY, jnp.zeros(b.inputs_shape()), jnp.ones(1))["params"])
        inputs = {"cond": jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)}
        rows = drawing.make_rows(built, "ddim", 2)
        draw = drawing.make_draw(built, sharding.make_mesh(devices=jax.devices()[:1]))
        program = draw.lower(params, inputs, np.zeros(1, np.int32), rows, KEY)
        texts.append(program.as_text())
        flops.append(program.cost_analysis()["flops"])
    assert texts[0] == texts[1] != texts[2]
    assert flops[2] / flops[1] == pytest.approx(2, rel=0.1)


def test_tiles_and_windows_are_guided(tmp_path):
    """A network that looks at pixels alone draws the same in tiles as at once."""
    built = linear("sampling.guidance=2.5")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rows, model = drawing.make_rows(built, "ddim", 4), drawing.Model(built, {}, 1, mesh, "nowhere")
    cond = np.asarray(built.task.condition(LABELS, (64, 64)))
    arguments = {"cond": cond}, np.arange(2), rows, KEY
    whole = drawing.make_plain_draw(built)({}, *arguments)
    tiled = drawing.make_plain_draw(built, lambda predict: tiles.tiled(predict, 32, 8, 1, 1))({}, *arguments)
    assert np.abs(np.asarray(whole, int) - np.asarray(tiled, int)).max() <= 1

    # Windows draw other noise: with a network that ignores x, and a last row that gives x0_hat, that does not matter.
    plan = out_of_core.Plan((64, 64), 32, 8, 1, 1)
    one = drawing.make_rows(built, "ddim", 1)
    built.network.__class__.apply = lambda self, variables, inputs, level, dropout_keys=None: inputs[..., :3] * 0.3
    strips = out_of_core.draw(model, one, plan, lambda start, stop: cond[0, start:stop], 0, KEY, tmp_path)
    drawn = np.concatenate(list(strips))
    np.testing.assert_allclose(drawn, np.broadcast_to([0.75, 0, 0], drawn.shape), atol=1e-6)


def test_both_evaluations_are_judged_by_their_own_statistics():
    built = experiment.build(tiny.tiny_config(*CHANGES, "sampling.guidance=2.5"))
    params = stand_ins.random_params(built, np.random.default_rng(0))
    guided = drawing.Guided(drawing.Network(built, params))
    arguments = jax.random.normal(KEY, (2, 16, 16, 3)), built.task.condition(LABELS, (16, 16)), jnp.full(2, 0.6)
    expected, statistics = guided(*arguments), guided.measure(*arguments)
    np.testing.assert_allclose(guided(*arguments, statistics), expected, atol=1e-4)
    assert np.abs(guided(*arguments, statistics[::-1]) - expected).max() > 0.01


def test_what_never_saw_nothing_is_not_guided():
    for changes in (("sampling.guidance=2.0",), (*CHANGES, "task.drop_label=0.0", "sampling.guidance=2.0")):
        with pytest.raises(UserError, match=r"sampling\.guidance = 2\.0.*task\.drop_label"):
            tiny.tiny_config(*changes)


def test_samplers_run_guided():
    built = linear("sampling.guidance=1.5", "sampling.clip=range")
    cond = built.task.condition(LABELS, (16, 16))
    denoise = drawing.make_denoise(built, {}, {"cond": cond})
    for sampler in ("heun", "dpmpp_2m", "ddpm"):
        x0 = sampling.run(KEY, denoise, (2, 16, 16, 3), drawing.make_rows(built, sampler, 4))
        assert np.isfinite(x0).all() and float(x0[0, ..., 0].mean()) > float(x0[1, ..., 0].mean())
