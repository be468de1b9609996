import gc
import json
import shutil

import chex
import jax
import pytest
import tiny

from dream_jax.config import records
from dream_jax.errors import UserError
from dream_jax.inference import trained
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, flat, weights
from dream_jax.training.train_step import start_state

# A reading that fails leaves others of orbax's unfinished, whose ends nobody waits for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collect():
    """What is left unfinished is collected here, not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the checkpoints of steps 1 and 2, and their states; not to be changed."""
    workdir = tmp_path_factory.mktemp("saved")
    records.save(tiny.tiny_config(), workdir / "config.json")
    experiment = trained.open_experiment(workdir)
    init, _ = start_state(experiment, make_optimizer(experiment.config.optimizer), sharding.make_mesh())
    start = init()
    states = {}
    with checkpoint.open_manager(workdir / "checkpoints", keep=2) as manager:
        for step in (1, 2):
            key = jax.random.key(step)
            ema = jax.tree.map(lambda a, key=key: a + jax.random.normal(key, a.shape), start.ema)
            states[step] = start.replace(step=start.step + step, ema=ema)
            checkpoint.save(manager, states[step], {"data": "none"})
            checkpoint.wait(manager)
    return workdir, flat.trees(states)


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "workdir")


def newest(states):
    return jax.device_get(states[max(states)].ema)


def damage(workdir, step):
    """Cuts the file of a checkpoint's numbers."""
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])


def test_the_ema_weights_of_the_newest_checkpoint_come_back_to_the_bit(saved, capsys):
    workdir, states = saved
    model = trained.load(workdir)
    assert (model.step, model.workdir) == (2, str(workdir))
    chex.assert_trees_all_equal(jax.device_get(model.params), newest(states))
    chex.assert_trees_all_equal_dtypes(model.params, states[2].ema)
    assert capsys.readouterr().err == ""


def test_only_the_weights_are_read(saved, workdir, monkeypatch):
    asked = []
    restore = checkpoint.ocp.PyTreeCheckpointHandler.restore

    def watched(self, folder, args):
        asked.extend(jax.tree.leaves(args.item))
        return restore(self, folder, args=args)

    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", watched)
    trained.load(workdir)
    assert len(asked) == 1 + len(jax.tree.leaves(saved[1][2].ema))


def test_a_damaged_checkpoint_is_passed_over_and_named(saved, workdir, capsys):
    damage(workdir, 2)
    model = trained.load(workdir)
    assert model.step == 1
    chex.assert_trees_all_equal(jax.device_get(model.params), jax.device_get(saved[1][1].ema))
    error = capsys.readouterr().err
    assert "step 2 is damaged" in error and "passed over" in error
    damage(workdir, 1)
    with pytest.raises(UserError, match=r"every checkpoint is damaged.*\n  step 2: .*\n  step 1: "):
        trained.load(workdir)


def test_weights_that_are_not_what_was_saved_are_damage(workdir, monkeypatch, capsys):
    handler, restore = checkpoint.ocp.PyTreeCheckpointHandler, checkpoint.ocp.PyTreeCheckpointHandler.restore

    def changed(self, folder, args):
        weights = restore(self, folder, args=args)
        if folder.parent.name == "1":
            return weights
        kernel = weights.ema["conv_in"]["kernel"]
        return weights._replace(ema={**weights.ema, "conv_in": {**weights.ema["conv_in"], "kernel": kernel + 1}})

    monkeypatch.setattr(handler, "restore", changed)
    assert trained.load(workdir).step == 1
    assert "1 of 70 arrays are not what was saved, ema['conv_in']['kernel'] the first" in capsys.readouterr().err


def without_checksums(workdir, step):
    (workdir / "checkpoints" / str(step) / "about" / "metadata").write_text(json.dumps({"data": "none"}))


def test_a_checkpoint_without_checksums_is_read_with_a_word(saved, workdir, capsys):
    without_checksums(workdir, 2)
    model = trained.load(workdir)
    chex.assert_trees_all_equal(jax.device_get(model.params), newest(saved[1]))
    assert "no checksums" in capsys.readouterr().err


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize(
    ("change", "with_checksums", "without"),
    [
        ("network.channels=16", "is wanted", "every checkpoint is damaged"),
        ("network.attention_resolutions=16,", "it has nothing, and float32", "arrays are not there"),
    ],
)
def test_weights_of_another_network_are_refused(workdir, change, checksums, with_checksums, without):
    records.save(tiny.tiny_config(change), workdir / "config.json")
    if not checksums:
        for step in (1, 2):
            without_checksums(workdir, step)
    with pytest.raises(UserError, match=with_checksums if checksums else without):
        trained.load(workdir)


def test_a_part_of_the_weights_is_not_taken_for_all(workdir):
    without = jax.ShapeDtypeStruct((), "int32"), {"conv_in": {"bias": jax.ShapeDtypeStruct((8,), "float32")}}
    shapes = weights.FIELDS["ema"](*without)
    layout = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    with pytest.raises(UserError, match="and nothing is wanted"):
        checkpoint.restore(workdir / "checkpoints", shapes, layout, print, partial=True)


def test_what_the_weights_were_trained_as_cannot_be_changed(workdir):
    assert trained.open_experiment(workdir, ["--config.evaluation.steps=2,"]).config.evaluation.steps == (2,)
    with pytest.raises(UserError, match=r"these keys are theirs:\n  task.gain: 4.0 -> 2.0"):
        trained.open_experiment(workdir, ["--config.task.gain=2.0"])
    with pytest.raises(UserError, match=r"--config.evaluation.steps: the model is trained; only --config.sampling"):
        trained.open_experiment(workdir, ["--config.evaluation.steps=2,"], only_sampling=True)
    chosen = trained.open_experiment(workdir, ["--config.sampling.eta=0.5"], only_sampling=True)
    assert chosen.config.sampling.eta == 0.5


@pytest.mark.parametrize(
    "beside",
    [
        ("data.folder=high", "data.lr_folder=low", "data.eval_folder=more", "data.eval_lr_folder=small"),
        ("data.tfds=div2k", "data.lr_key=lr"),
    ],
)
def test_any_scale_of_a_run_on_low_resolution_pictures_that_were_there(workdir, beside):
    records.save(tiny.tiny_config(*beside), workdir / "config.json")
    config = trained.open_experiment(workdir, scale=2.7).config
    assert config.task.scale == 2.7
    assert (config.data.lr_folder, config.data.eval_lr_folder, config.data.lr_key) == (None, None, None)


@pytest.mark.parametrize(
    ("trained_as", "changes", "allowed"),
    [
        (
            ("task.name=class_conditional", "data.classes=cat,dog"),
            ("data.classes=bird,fish", "task.drop_label=0.0"),
            "evaluation.steps=2,",
        ),
        (("task.name=denoising",), ("data.channels=1",), "task.deviation=50.0,"),
        (("task.name=inpainting",), ("task.gain=2.0",), "task.masks=box,"),
    ],
)
def test_how_pictures_are_degraded_is_no_part_of_the_weights(workdir, trained_as, changes, allowed):
    records.save(tiny.tiny_config("task.residual=False", *trained_as), workdir / "config.json")
    for change in changes:
        with pytest.raises(UserError, match=rf"these keys are theirs:\n  {change.partition('=')[0]}: "):
            trained.open_experiment(workdir, [f"--config.{change}"])
    trained.open_experiment(workdir, [f"--config.{allowed}"])


def test_a_workdir_without_a_checkpoint(workdir):
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match="there is no checkpoint yet"):
        trained.load(workdir)
