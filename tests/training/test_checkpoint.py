import gc
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dream_jax.errors import UserError
from dream_jax.runtime import sharding
from dream_jax.training import checkpoint, flat, train_state

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


ABOUT = {"config": {"seed": 0, "rate": 0.1, "p": None}, "versions": {"jax": "1"}, "data": "3 pictures"}


def make_state(step, size=64):
    """A state of random numbers, which compress badly, and so are what a flipped bit is silent in."""
    params = {"kernel": jax.random.normal(jax.random.key(step), (size, 3, size)), "bias": jnp.arange(5.0)}
    return train_state.start(params, optax.adam(1e-3)).replace(step=jnp.int32(step))


def write(directory, steps, state=make_state, keep=9):
    with checkpoint.open_manager(directory, keep) as manager:
        for step in steps:
            checkpoint.save(manager, state(step), ABOUT)
        checkpoint.wait(manager)


def restore(directory, like=None, **options):
    """(step restored, the state, what was told); the state must be that of its step to the bit."""
    like = make_state(0) if like is None else like
    mesh = sharding.make_mesh()
    layout = sharding.named(sharding.state_specs(like, mesh), mesh)
    told = []
    found = checkpoint.restore(directory, like, layout, told.append, **options)
    return (None, None, told) if found is None else (int(found[0].step), found[0], told)


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the checkpoints of steps 1 and 2, not to be changed."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    write(directory, (1, 2))
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_what_was_saved_comes_back_to_the_bit(saved):
    step, state, told = restore(saved)
    assert step == 2 and told == [] and same(state, make_state(2))


def test_flat_parts_are_trees_on_the_disk(saved, tmp_path):
    """So they are in checkpoints of earlier versions, which saved trees of arrays on the devices."""

    def as_tree(step):
        return jax.tree.map(jnp.asarray, flat.trees(make_state(step)))

    write(tmp_path / "trees", [2], as_tree)
    about = [json.loads((folder / "2" / "about" / "metadata").read_text()) for folder in (saved, tmp_path / "trees")]
    assert about[0] == about[1] and len(about[0]["leaves"]) == 2 + 4 * 2
    step, state, told = restore(tmp_path / "trees")
    assert step == 2 and told == [] and same(state, make_state(2)) and isinstance(state.params, flat.Flat)
    step, state, told = restore(saved, as_tree(0))
    assert step == 2 and told == [] and same(state, as_tree(2)) and state.params["kernel"].shape == (64, 3, 64)


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: float("nan"), 6: 9.0}
    for steps in ((1, 2, 3), (4, 5, 6)):
        with checkpoint.open_manager(tmp_path / "checkpoints", keep=1, keep_best=2) as manager:
            for step in steps:
                checkpoint.save(manager, make_state(step, size=2), ABOUT | {"loss": losses[step]})
                checkpoint.wait(manager)
        kept = {1, 2, 3} if steps[-1] == 3 else {2, 4, 6}
        assert names(tmp_path / "checkpoints") == sorted(map(str, kept))


def test_a_directory_without_checkpoints_has_none(tmp_path):
    assert restore(tmp_path / "missing") == (None, None, [])
    assert not (tmp_path / "missing").exists()


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def test_flipped_bits_are_found_or_harmless(saved, tmp_path):
    rng = np.random.default_rng(0)
    found = 0
    for trial in range(20):
        directory = shutil.copytree(saved, tmp_path / str(trial) / "checkpoints")
        files = files_of(directory / "2")
        sizes = np.array([path.stat().st_size for path in files])
        # Half of them by size, which hits the numbers, half in any file.
        chosen = rng.choice(len(files), p=sizes / sizes.sum()) if trial % 2 else rng.choice(np.nonzero(sizes)[0])
        content = bytearray(files[chosen].read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        files[chosen].write_bytes(content)
        step, state, told = restore(directory, move=True)
        assert same(state, make_state(step))
        assert (step == 1) == (len(told) == 1) == (names(directory.parent / "damaged") == ["2-1"])
        found += step == 1
    assert found >= 10


@pytest.mark.parametrize("part", [None, 0, 0.5, 0.999])
def test_truncated_and_missing_files_are_found_or_harmless(part, saved, tmp_path):
    for number, file in enumerate(files_of(saved / "2")):
        if number % 2 and part != 0.5:
            continue
        directory = shutil.copytree(saved, tmp_path / str(number) / "checkpoints")
        damaged = directory / file.relative_to(saved)
        if part is None:
            damaged.unlink()
        else:
            damaged.write_bytes(damaged.read_bytes()[: int(part * damaged.stat().st_size)])
        step, state, _ = restore(directory)
        assert same(state, make_state(step))


def damage(step):
    """Cuts the file of a checkpoint's numbers."""
    largest = max(files_of(step), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])


def test_a_run_moves_what_is_damaged_aside_and_can_save_that_step_again(directory):
    damage(directory / "2")
    (directory / "3").mkdir()
    (directory / "4.orbax-checkpoint-tmp").mkdir()
    step, _, told = restore(directory, move=True)
    assert step == 1 and names(directory) == ["1"]
    assert names(directory.parent / "damaged") == ["2-1", "3-1", "4.orbax-checkpoint-tmp-1"]
    assert [message.split(" is ")[0] for message in told] == [
        "the checkpoint of step 3", "the checkpoint of step 2", "the checkpoint 4.orbax-checkpoint-tmp",
    ]  # fmt: skip
    write(directory, [2])
    assert restore(directory)[0] == 2
    damage(directory / "2")
    restore(directory, move=True)
    assert "2-2" in names(directory.parent / "damaged")


def test_a_reader_moves_nothing(directory):
    damage(directory / "2")
    (directory / "4.orbax-checkpoint-tmp").mkdir()
    step, _, told = restore(directory)
    assert step == 1 and "step 2 is damaged" in told[0] and "passed over" in told[0]
    assert names(directory) == ["1", "2", "4.orbax-checkpoint-tmp"] and not (directory.parent / "damaged").exists()


def test_a_rollback_moves_what_it_takes_back_to_a_folder_of_its_own(directory):
    write(directory, (3, 4))
    damage(directory / "2")
    step, state, told = restore(directory, move=True, before=4)
    assert step == 3 and same(state, make_state(3)) and len(told) == 1 and "of no use, as it holds step 4" in told[0]
    step, _, _ = restore(directory, move=True, before=3)
    assert step == 1 and names(directory) == ["1"]
    assert names(directory.parent / "rolled_back") == ["3-1", "4-1"]
    assert names(directory.parent / "damaged") == ["2-1"]
    with pytest.raises(UserError, match="there is no whole checkpoint before step 1"):
        restore(directory, move=True, before=1)
    assert names(directory) == ["1"]


def test_with_all_damaged_nothing_starts_anew(directory):
    damage(directory / "1")
    damage(directory / "2")
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint is damaged.*\n  step 2: .*\n  step 1: "):
            restore(directory, move=True)
    assert names(directory) == ["1", "2"]


def test_a_run_killed_in_its_first_save_starts_anew(tmp_path):
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    step, _, told = restore(tmp_path / "checkpoints", move=True)
    assert step is None and "half-written" in told[0]


def test_a_step_under_another_number_is_damage(directory):
    shutil.copytree(directory / "2", directory / "7")
    step, _, told = restore(directory)
    assert step == 2 and "it holds the state of step 2" in told[0]


def test_a_checkpoint_without_checksums_is_restored_with_a_word(directory):
    file = directory / "2" / "about" / "metadata"
    file.write_text(json.dumps(ABOUT))
    step, state, told = restore(directory)
    assert step == 2 and same(state, make_state(2)) and "no checksums" in told[0]


def test_another_dtype_or_shape_is_refused_and_is_no_damage(directory):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.ndim == 3 else a, flat.trees(make_state(0)))
    with pytest.raises(UserError, match=r"it has float32 \[64, 3, 64\], and bfloat16 \[64, 3, 64\] is wanted"):
        restore(directory, half, move=True)
    with pytest.raises(UserError, match=r"it has float32 \[64, 3, 64\], and float32 \[32, 3, 32\] is wanted"):
        restore(directory, make_state(0, size=32), move=True)
    assert names(directory) == ["1", "2"]


def test_who_does_not_accept_a_checkpoint_stops(directory):
    def accept(about):
        assert about["config"] == ABOUT["config"]
        raise UserError("of another run")

    with pytest.raises(UserError, match="of another run"):
        restore(directory, accept=accept, move=True)
    assert names(directory) == ["1", "2"]


def test_what_may_not_be_read_is_no_damage(directory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointHandler, "restore", refuse)
    with pytest.raises(UserError, match=r"cannot be read .*Permission denied"):
        restore(directory, move=True)
    assert names(directory) == ["1", "2"]


def test_a_full_disk_stops_with_a_message_and_the_last_checkpoint_is_whole(directory):
    # A limit on the size of files fails as a full disk does: in the thread that writes.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    manager = checkpoint.open_manager(directory)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); the last one is whole"):
            checkpoint.save(manager, make_state(3, size=512), ABOUT)
            checkpoint.wait(manager)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        manager.close()
    step, state, _ = restore(directory, move=True)
    assert step == 2 and same(state, make_state(2))
    assert names(directory.parent / "damaged") == ["3.orbax-checkpoint-tmp-1"]
