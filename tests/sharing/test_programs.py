import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import stand_ins
import tiny

from dream_jax import experiment
from dream_jax.__main__ import main
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.inference import classes, drawing, observation, tile_plans
from dream_jax.sharing import programs
from dream_jax.training import weights

pytest.importorskip("flatbuffers")

# What compiles the program elsewhere compiles it as it is compiled here.
ALONE = "import sys; sys.modules['dream_jax'] = None; exec(sys.stdin.read())"


def test_the_program_of_the_docs_draws_the_picture_of_upscale_without_this_package(tmp_path):
    """To the bit, with the compiler options of this package."""
    workdir, _ = stand_ins.untrained_run(tmp_path / "run")
    low = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    images.write(tmp_path / "SMALL.png", low)
    chosen = "--sampler", "ddpm", "--steps", "2", "--config.sampling.clip=dynamic"
    where = "--input", tmp_path / "SMALL.png", "--output", tmp_path / "ours.png", "--seed", 2**32 - 2
    assert main(["upscale", "--workdir", str(workdir), *map(str, where), *chosen]) == 0
    form = "--format", "stablehlo", "--size", "9x13"
    assert main(["export", "--workdir", str(workdir), "--output", str(tmp_path), *form, *chosen]) == 0

    program = re.search(r"```python\n(import zlib\n.*?)```", (tiny.ROOT / "docs" / "sharing.md").read_text(), re.S)[1]
    assert 'seed = "SMALL.png", 0' in program and len(program.strip().splitlines()) <= 12
    program = program.replace('"SMALL.png", 0', '"SMALL.png", 2**32 - 2')
    options = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_experimental_ynn_fusion_type={options}"
    ended = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=program, cwd=tmp_path, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    ours, theirs = (images.read(tmp_path / name) for name in ("ours.png", "LARGE.png"))
    np.testing.assert_array_equal(theirs, ours)
    assert ours.std() > 5 and ours.shape == (18, 26, 3)
    about = json.loads((tmp_path / "program.json").read_text())
    assert about["platforms"] == ["cpu", "cuda", "tpu"] and about["arguments"]["picture"] == "uint8[1,9,13,3]"


def test_what_is_to_be_known_of_levels_is_beside_the_program():
    built = experiment.build(tiny.tiny_config("data.bits=16", "data.range=0,9"))
    exported = SimpleNamespace(in_avals=["uint16[1,9,13,3]"] * 3, out_avals=["uint16[1,18,26,3]"], platforms=("cpu",))
    about = programs._about(drawing.Model(built, {}, 1, None, ""), {}, exported)
    assert (about["bits"], about["range"]) == (16, [0.0, 9.0]) and json.dumps(about)
    assert about["condition_bits"] is None and about["condition_range"] is None
    paired = "task.name=paired", "task.residual=False", "data.condition_bits=16", "data.condition_range=0,4095"
    built = experiment.build(tiny.tiny_config(*paired, "data.range=1,9"))
    about = programs._about(drawing.Model(built, {}, 1, None, ""), {}, exported)
    assert (about["condition_bits"], about["condition_range"]) == (16, [0.0, 4095.0]) and json.dumps(about)
    assert (about["bits"], about["range"]) == (8, [1.0, 9.0])


def test_inpainting_takes_a_mask_after_the_picture():
    real = experiment.build(tiny.tiny_config("task.name=inpainting", "task.residual=False", "image_size=16"))
    built = real._replace(network=stand_ins.fake(stand_ins.its_input).experiment.network)
    rows = drawing.make_rows(built, "ddpm", 2)
    program, arguments = programs.make(built, {}, rows, (9, 13))
    assert [(each.shape, each.dtype) for each in arguments[:2]] == [
        ((1, 9, 13, 3), np.uint8),
        ((1, 9, 13, 1), np.uint8),
    ]
    rng = np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (9, 13, 3), np.uint8), rng.integers(0, 2, (9, 13, 1), np.uint8) * np.uint8(255)
    drawn = np.asarray(jax.jit(program)(picture[None], mask[None], np.uint32(5), np.int32(2)))[0]
    known = mask[..., 0] == 0
    np.testing.assert_array_equal(drawn[known], picture[known])
    model = drawing.Model(built, {}, 1, stand_ins.sharding.make_mesh(devices=jax.devices()[:1]), "")
    shape = tile_plans.shape_of(built, (9, 13))
    observed = observation.observed_of(built.task, picture, mask)
    plan = tile_plans.Planner(model, rows, 2**33)(shape)
    (expected,) = tile_plans.draw_observed(model, rows, plan, shape, [observed], [2], drawing.make_key(5))
    assert np.abs(drawn.astype(int) - expected).max() <= 1 and np.any(drawn != picture)
    exported = SimpleNamespace(in_avals=[*map(str, arguments)], out_avals=[""], platforms=("cpu",))
    about = programs._about(model._replace(experiment=real), {}, exported)
    assert list(about["arguments"]) == ["picture", "mask", "seed", "number"]


def test_a_model_that_generates_takes_seed_and_number():
    built = experiment.build(tiny.tiny_config("task.name=unconditional", "task.residual=False", "image_size=16"))
    built = built._replace(network=stand_ins.fake(stand_ins.its_input).experiment.network)
    rows = drawing.make_rows(built, "ddpm", 2)
    program, arguments = programs.make(built, {}, rows, (16, 32))
    assert [argument.dtype for argument in arguments] == [np.uint32, np.int32]
    draw = drawing.make_draw(built, stand_ins.sharding.make_mesh(devices=jax.devices()[:1]))
    expected = draw({}, drawing.no_inputs(3, 16, 32), np.arange(3), rows, drawing.make_key(5))
    drawn = jax.jit(program)(np.uint32(5), np.int32(2))
    np.testing.assert_array_equal(drawn[0], expected[2])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sampler": "nosuch"}, "ddim"),
        ({"steps": 0}, "1 to 2000"),
        ({"size": "9"}, "write HEIGHTxWIDTH"),
        ({"size": "0x4"}, "write HEIGHTxWIDTH"),
        ({"size": "9x9\n"}, "write HEIGHTxWIDTH"),
    ],
)
def test_impossible_options_are_refused(options, reason, tmp_path):
    built = experiment.build(tiny.tiny_config())
    with pytest.raises(UserError, match=reason):
        programs.check(built, tmp_path / "program", options)


def test_a_class_is_an_argument():
    names = "task.name=class_conditional", "task.residual=False", "data.classes=cat,dog,bird", "image_size=16"
    built = experiment.build(tiny.tiny_config(*names, "sampling.guidance=2.0"))
    shapes = weights.shapes_of(built)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.02, leaf.dtype), shapes)
    rows = drawing.make_rows(built, "ddim", 2)
    program, arguments = programs.make(built, params, rows, (16, 16))
    assert [a.dtype.name for a in arguments] == ["int32", "uint32", "int32"]
    drawn = jax.jit(program)(np.int32(2), np.uint32(5), np.int32(1))
    inputs, draw = classes.inputs_of(built.task, [1], (16, 16), [2]), jax.jit(drawing.make_plain_draw(built))
    expected = draw(params, inputs, np.array([1]), rows, drawing.make_key(5))
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1 and np.std(drawn) > 1
    exported = SimpleNamespace(in_avals=arguments, out_avals=[drawn], platforms=("cpu",))
    about = programs._about(drawing.Model(built, {}, 1, None, ""), {}, exported)
    assert list(about["arguments"]) == ["class", "seed", "number"] and about["classes"] == ["cat", "dog", "bird"]
