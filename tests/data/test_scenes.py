import numpy as np
import pytest
import tiny

from dream_jax.data import held_out, indexed, scenes, sources
from dream_jax.errors import UserError

PAIRED = "task.name=paired", "task.residual=False", "data.bundled=scenes"


def pairs(*changes, count=4):
    source = sources.open_source(tiny.tiny_config(*PAIRED, *changes), "eval")
    return indexed.stack(source.pair(i) for i in range(count))


def test_all_that_is_known_of_a_scene_is_of_one_scene():
    scenes._made.cache_clear()
    depth = pairs("task.target=depth", "data.channels=1", "data.bits=16")
    scenes._made.cache_clear()
    classes = pairs("task.target=classes", "data.channels=1", "task.num_classes=7")
    pictures = pairs("task.target=picture")
    np.testing.assert_array_equal(depth.beside, classes.beside)
    np.testing.assert_array_equal(depth.beside, pictures.image)
    assert depth.image.dtype == np.uint16 and depth.image.min() > 0
    wall = classes.image == 0
    assert depth.image[wall].min() > depth.image[~wall].max(), "the wall is behind all shapes"
    assert set(np.unique(classes.image)) <= set(range(7)) and len(np.unique(classes.image)) > 3
    assert 0.1 < pictures.beside.mean() / pictures.image.mean() < 0.3


def test_scenes_differ_and_those_to_train_on_are_others():
    config = tiny.tiny_config(*PAIRED)
    train, held = (sources.open_source(config, split) for split in ("train", "eval"))
    seen = {train[i].tobytes() for i in range(8)} | {held[i].tobytes() for i in range(8)}
    assert len(seen) == 16 and len(train) == 2000 and len(held) == 100


def test_a_label_is_the_kind_of_the_one_shape():
    changes = "task.name=class_conditional", "task.residual=False", "data.bundled=scenes", "data.classes=disc,square"
    pair = held_out.eval_pictures(tiny.tiny_config(*changes, "evaluation.pictures=4"))
    assert pair.image.shape == (4, 32, 32, 3) and pair.beside.ravel().tolist() == [0, 1, 0, 1]
    assert sources.class_names(tiny.tiny_config(*changes[:3], "task.num_classes=3")) == ("disc", "triangle", "square")


@pytest.mark.parametrize(
    "changes, words",
    [
        (("data.bundled=scenes",), "not for super_resolution"),
        (
            (*PAIRED, "task.target=classes", "data.channels=1", "task.num_classes=9"),
            "6 kinds of shapes at most, and the wall",
        ),
        ((*PAIRED, "data.channels=4"), r"data\.channels = 4: scenes have three"),
        ((*PAIRED, "data.condition_channels=4"), r"data\.condition_channels = 4: scenes have three"),
    ],
)
def test_scenes_for_nothing_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        sources.open_source(tiny.tiny_config(*changes), "train")


def test_what_lies_beside_pictures_does_not_fit_resized_ones():
    with pytest.raises(UserError, match=r"data\.resize = 40: conditions"):
        tiny.tiny_config(*PAIRED, "data.resize=40")
    source = sources.open_source(tiny.tiny_config(*PAIRED), "train")
    with pytest.raises(UserError, match=r"data\.resize = 40: conditions that are there do not fit"):
        indexed.fit(source, 0, 16, resize=40)
    label = "task.name=class_conditional", "task.residual=False", "data.bundled=scenes", "data.classes=disc,square"
    source = sources.open_source(tiny.tiny_config(*label), "train")
    pair = indexed.fit(source, 0, 16, resize=40)
    assert pair.image.shape == (40, 40, 3) and pair.beside.shape == (1, 1, 1)
