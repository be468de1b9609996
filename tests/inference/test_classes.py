import json

import numpy as np
import pytest
import tiny
from stand_ins import QUIET, untrained_run

from dream_jax import experiment
from dream_jax.__main__ import main
from dream_jax.data import held_out
from dream_jax.data.indexed import Pair
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring, sample_grids, tables
from dream_jax.files import grids, images
from dream_jax.inference import classes, generation, trained

CHANGES = (
    *("task.name=class_conditional", "task.residual=False", "image_size=16", "schedule.num_steps=100"),
    *("data.classes=cat,dog,bird", "objective.kind=v"),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path, _ = untrained_run(tmp_path_factory.mktemp("classes") / "run", 7, *CHANGES)
    return path


def draw(workdir, output, *options):
    chosen = "--steps", "2", "--batch_size", "4", "--count", "4", *options
    return main(["generate", "--workdir", str(workdir), "--output", str(output), *chosen])


def pictures(output):
    return [images.read(output / "pictures" / f"{i:06d}.png") for i in range(4)]


def test_pictures_are_of_the_classes_asked_for(workdir, tmp_path, capsys):
    about, drawn = {}, {}
    for name, options in {
        "turn": (),
        "dog": ("--class", "dog"),
        "two": ("--class", "bird,cat"),
        "guided": ("--class", "dog", "--config.sampling.guidance=3"),
    }.items():
        assert draw(workdir, tmp_path / name, *options) == 0
        about[name] = json.loads((tmp_path / name / "generation.json").read_text())
        drawn[name] = pictures(tmp_path / name)
    assert [about[name]["classes"] for name in about] == ["all", [1], [2, 0], [1]]

    def same(a, b):
        return [np.array_equal(*pair) for pair in zip(drawn[a], drawn[b], strict=True)]

    # The pictures in turn are of 0 1 2 0, and those of two of 2 0 2 0.
    assert same("turn", "dog") == [False, True, False, False]
    assert same("turn", "two") == [False, False, True, True]
    assert same("guided", "dog") == [False] * 4 and about["guided"]["sampling"]["guidance"] == 3
    capsys.readouterr()
    assert draw(workdir, tmp_path / "dog", "--class", "cat") == 2
    assert "classes: [1] -> [0]" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["cow", "3", "dog,", "-1", "dog, cat", "9" * 50])
def test_classes_that_are_not_there_are_refused(workdir, wanted):
    built = trained.open_experiment(workdir)
    with pytest.raises(UserError, match=r"--class .*: choose bird, cat, dog, or a number from 0 to 2"):
        classes.parse(built, wanted)


def test_classes_are_named_or_numbered(workdir):
    built = trained.open_experiment(workdir)
    assert classes.parse(built, "bird,0") == [2, 0] and classes.parse(built) == [0, 1, 2]


def test_other_models_know_no_classes():
    built = experiment.build(tiny.tiny_config("task.name=unconditional", "task.residual=False"))
    assert classes.parse(built) == [] and classes.inputs_of(built.task, [0, 1], (4, 8))["cond"].shape == (2, 4, 8, 0)
    with pytest.raises(UserError, match="knows no classes"):
        classes.parse(built, "cat")


def test_results_that_were_drawn_before_there_was_an_option_are_gone_on_with(tmp_path):
    about = {"seed": 0, "count": 1, "sampling": {"eta": 0.5, "guidance": 1.0}}
    (tmp_path / "pictures").mkdir()
    (tmp_path / "generation.json").write_text(json.dumps(about | {"sampling": {"eta": 0.5}}))
    generation._claim(tmp_path, about, overwrite=False)
    assert json.loads((tmp_path / "generation.json").read_text()) == about
    with pytest.raises(UserError, match="sampling"):
        generation._claim(tmp_path, about | {"sampling": {"eta": 0.5, "guidance": 2.0}}, overwrite=False)


def test_each_drawn_picture_has_the_label_of_the_held_out_one_in_its_place(workdir, tmp_path, monkeypatch):
    model = trained.load(workdir, ["--config.evaluation.pictures=4", "--config.evaluation.batch_size=4"])
    held = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    labels = np.array([2, 0, 0, 1], np.uint16)[:, None, None, None]
    seen, make = [], measuring.make_drawer
    monkeypatch.setattr(measuring, "make_drawer", lambda model, given: seen.append(given["cond"]) or make(model, given))
    monkeypatch.setattr(held_out, "eval_pictures", lambda *_: held[::-1])
    record, columns = measuring.evaluate({"run": model}, Pair(held, labels), QUIET)
    np.testing.assert_array_equal(seen[0][:, 3, 5], np.eye(3)[[2, 0, 0, 1]])
    assert [row["name"] for row in record["rows"]] == ["training pictures", "ddim 1"]
    assert list(columns)[-1] == "held out"
    count = len(columns["held out"])
    assert record["shown_classes"] == ["bird", "cat", "cat", "dog"][:count]
    tables.write(record, columns, tmp_path / "table.json", overwrite=False)
    without = grids.grid(columns)
    assert images.read(tmp_path / "table.png").shape[0] > without.shape[0]
    grid = sample_grids.make_sampler(model.experiment, Pair(held, labels), model.mesh)(model.params)
    assert grid.dtype == np.uint8 and grid.shape[2] == 3
    assert classes.listed(model.experiment, range(4)) == "cat, dog, bird, cat"
