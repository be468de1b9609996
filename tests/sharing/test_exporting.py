import json
import os
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import stand_ins
import tiny

from dream_jax import commands, experiment
from dream_jax.__main__ import main
from dream_jax.config import checks, keys
from dream_jax.errors import UserError
from dream_jax.files import images
from dream_jax.inference import trained
from dream_jax.sharing import card, exporting, folders
from dream_jax.tasks import TASKS
from dream_jax.training import integrity, model_folder, parent, weights

QUIET = stand_ins.QUIET
STEP = 7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with one checkpoint of random weights, and its state; not to be changed."""
    return stand_ins.untrained_run(tmp_path_factory.mktemp("sharing") / "run", STEP)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The model's folder of that run; not to be changed."""
    output = tmp_path_factory.mktemp("exported") / "model"
    exporting.export(run[0], output, QUIET)
    return output


@pytest.fixture
def model(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def test_weights_and_config_come_back_to_the_bit(run, exported):
    workdir, state = run
    ours, theirs = trained.load(exported), trained.load(workdir)
    chex.assert_trees_all_equal(jax.device_get(ours.params), state.ema)
    assert (ours.step, ours.weights, ours.workdir) == (STEP, "ema", str(exported))
    assert ours.experiment.config == theirs.experiment.config
    about = json.loads((exported / "model.json").read_text())
    assert about["sha256"] == integrity.digest(state.ema) and about["data"]["fingerprint"] == "9 pictures, crc32 1"
    arrays = safetensors.numpy.load_file(exported / "model.safetensors")
    np.testing.assert_array_equal(arrays["conv_in.kernel"], state.ema["conv_in"]["kernel"])


def test_the_folder_draws_the_pictures_of_its_run(run, exported, tmp_path):
    images.write(tmp_path / "low.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for name, place in (("run", ("--workdir", run[0])), ("model", ("--model", exported))):
        where = "--input", tmp_path / "low.png", "--output", tmp_path / f"{name}.png"
        assert main(["upscale", *map(str, (*place, *where)), "--steps", "2", "--sampler", "ddpm"]) == 0
    ours, theirs = (images.read(tmp_path / f"{name}.png") for name in ("run", "model"))
    np.testing.assert_array_equal(ours, theirs)


def test_a_run_of_no_steps_that_begins_with_the_folder_is_its_parent(run, exported, tmp_path):
    config = tiny.tiny_config(f"init.path={exported}", "steps=0")
    commands.train_and_evaluate(config, tmp_path / "child", QUIET, evaluates=False)
    chex.assert_trees_all_equal(jax.device_get(trained.load(tmp_path / "child").params), run[1].ema)
    about = json.loads((tmp_path / "child" / "parent.json").read_text())
    assert about["sha256"] == integrity.digest(run[1].ema) and about["step"] == STEP
    # Its own folder tells of that, but not where the parent lay.
    exporting.export(tmp_path / "child", tmp_path / "model", QUIET)
    said = json.loads((tmp_path / "model" / "model.json").read_text())["parent"]
    assert said == {name: about[name] for name in ("step", "weights", "partial", "sha256")}
    assert str(tmp_path) not in "".join(path.read_text(errors="replace") for path in (tmp_path / "model").iterdir())


def test_the_last_step_s_own_weights(run, tmp_path):
    workdir, state = run
    exporting.export(workdir, tmp_path / "live", QUIET, weights="live", checkpoint=str(STEP))
    model = trained.load(tmp_path / "live")
    chex.assert_trees_all_equal(jax.device_get(model.params), state.params)
    assert model.weights == "live" and "of the last step" in (tmp_path / "live" / "README.md").read_text()


def test_paths_stay_behind_and_names_do_not():
    paths = (
        *("data.folder=/home/me/faces", "data.eval_folder=/home/me/more", "data.cache_dir=/home/me/cache"),
        *("checkpoint.directory=/home/me/checkpoints", "evaluation.weights=/home/me/weights", "data.tfds_dir=/home/me"),
        *("init.path=/home/me/run", "init.checkpoint=best", "init.partial=True"),
    )
    config = model_folder.portable(tiny.tiny_config(*paths))
    checks.validate(config)
    assert "/home" not in config.to_json() and keys.flatten(config) == keys.flatten(tiny.tiny_config())
    named = model_folder.portable(tiny.tiny_config("data.tfds=div2k", "data.lr_key=none")).data
    assert (named.tfds, named.lr_key) == ("div2k", "none")


def test_an_address_on_the_hub_stands_for_the_folder(run, exported, monkeypatch):
    client = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(exported)

    monkeypatch.setattr(client, "snapshot_download", download)
    place = "hf://me/tiny-x4@v1.0"
    model = trained.load(place)
    chex.assert_trees_all_equal(jax.device_get(model.params), run[1].ema)
    params, about, *_ = read_as_parent(place)
    chex.assert_trees_all_equal(params, run[1].ema)
    assert model.workdir == place and about["model"] == place
    # Once for all that a program does with it.
    files = ["model.safetensors", "config.json", "README.md", "model.json"]
    assert asked == [("me/tiny-x4", "v1.0", files)]


def test_paths_in_a_folder_s_config_are_not_taken(model, tmp_path):
    """It may be anyone's, and say where to write."""
    data = {"folder": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    _json(lambda record: record | {"data": record["data"] | data}, "config.json")(model)
    config = trained.open_experiment(model).config
    assert config.data.folder is None and config.data.cache_dir is None
    chosen = trained.open_experiment(model, ["--config.data.folder=mine"]).config
    assert chosen.data.folder == "mine" and chosen.data.cache_dir is None


def read_as_parent(place, *changes):
    built = experiment.build(tiny.tiny_config(f"init.path={place}", *changes))
    return parent.read(built, weights.shapes_of(built), dict, print)


def test_only_what_the_folder_holds_is_given(exported):
    for use in (lambda: trained.load(exported, (), "3"), lambda: read_as_parent(exported, "init.checkpoint=best")):
        with pytest.raises(UserError, match=f"holds the weights of step {STEP} alone"):
            use()
    with pytest.raises(UserError, match="the averaged weights alone"):
        read_as_parent(exported, "init.weights=live")
    pytest.importorskip("flatbuffers")
    with pytest.raises(UserError, match="the ema weights alone"):
        exporting.export(exported, exported.parent / "program", QUIET, "stablehlo", weights="live")


class Harm:
    """Would leave a trace if it were ever unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def _change(arrays, name, array):
    return arrays | {name: array}


def _safetensors(change):
    def damage(folder):
        path = folder / "model.safetensors"
        path.write_bytes(safetensors.numpy.save(change(safetensors.numpy.load_file(path))))

    return damage


def _bytes(change, name="model.safetensors"):
    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def _loop(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")


def _pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _holes(folder):
    os.truncate(folder / "model.safetensors", 2**40)


def _json(change, name="model.json"):
    return _bytes(lambda data: json.dumps(change(json.loads(data))).encode(), name)


KERNEL = "conv_in.kernel"
DAMAGES = {
    "cut": (_bytes(lambda data: data[:-100]), r"model\.safetensors: not a sound"),
    "empty": (_bytes(lambda data: b""), r"model\.safetensors: not a sound"),
    "a long header": (_bytes(lambda data: (2**31).to_bytes(8, "little") + data[8:]), "its header claims 2147483648"),
    "a pickle": (_bytes(lambda data: __import__("pickle").dumps(Harm())), r"model\.safetensors: not a sound"),
    "a loop of links": (_loop, r"model\.safetensors: cannot be read"),
    "a pipe": (_pipe, r"model\.safetensors: no such file"),
    "a terabyte of holes": (_holes, r"model\.safetensors: it has 1099511627776 bytes"),
    "not finite": (
        _safetensors(lambda arrays: _change(arrays, KERNEL, np.full_like(arrays[KERNEL], np.nan))),
        rf"model\.safetensors: {KERNEL} holds values that are not finite",
    ),
    "another shape": (
        _safetensors(lambda arrays: _change(arrays, KERNEL, arrays[KERNEL][:1])),
        rf"model\.safetensors: {KERNEL} has the shape \(1, 3, 24, 8\)",
    ),
    "whole numbers": (
        _safetensors(lambda arrays: _change(arrays, KERNEL, arrays[KERNEL].astype(np.int32))),
        rf"model\.safetensors: {KERNEL} has the type int32",
    ),
    "an array missing": (
        _safetensors(lambda arrays: {name: array for name, array in arrays.items() if name != KERNEL}),
        rf"model\.safetensors: {KERNEL} is missing",
    ),
    "an array too many": (
        _safetensors(lambda arrays: _change(arrays, "extra\x1b", np.zeros(1))),
        r"model\.safetensors: extra\\x1b: no such array",
    ),
    "another value": (
        _safetensors(lambda arrays: _change(arrays, KERNEL, arrays[KERNEL] + 1)),
        r"model\.safetensors: its arrays are not those that were exported",
    ),
    "another program's config": (_bytes(lambda data: b'{"architectures": ["X"]}', "config.json"), r"config\.json: "),
    "a config of a larger network": (
        _json(lambda record: record | {"network": record["network"] | {"channels": 16}}, "config.json"),
        r"model\.safetensors: conv_in.* has the shape",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json: not found"),
    "another program's description": (_json(lambda record: [record]), r"model\.json: not a description"),
    "another format": (_json(lambda record: record | {"format": "x"}), r"model\.json: .*its format is not"),
    "a later version": (_json(lambda record: record | {"version": 2}), r"model\.json: of a later version"),
    "no step": (_json(lambda record: record | {"step": "7"}), r"model\.json: .*no step"),
    "a long description": (_bytes(lambda data: b" " * 2**21, "model.json"), r"model\.json: not a description"),
    "no description": (lambda folder: (folder / "model.json").unlink(), r"model\.json: not found"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_folder_that_is_not_sound_is_refused_with_the_file_s_name(kind, model, tmp_path, monkeypatch):
    damage, reason = DAMAGES[kind]
    damage(model)
    monkeypatch.chdir(tmp_path)
    for use in (trained.load, read_as_parent):
        with pytest.raises(UserError, match=reason) as caught:
            use(model)
        assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()
    assert not (tmp_path / "harmed").exists()


def test_half_precision_is_taken(model):
    path = model / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    path.write_bytes(safetensors.numpy.save({name: array.astype(jnp.bfloat16) for name, array in arrays.items()}))
    _json(lambda record: {name: value for name, value in record.items() if name != "sha256"})(model)
    params = trained.load(model).params
    np.testing.assert_array_equal(params["conv_in"]["kernel"], arrays[KERNEL].astype(jnp.bfloat16).astype(np.float32))


def test_nothing_is_replaced_that_nobody_named(run, exported, model, tmp_path):
    before = {path: path.read_bytes() for path in (*run[0].glob("*.json"), *exported.iterdir())}
    for place, output, reason in (
        (run[0], run[0], "choose another --output"),
        (run[0], exported, "pass --overwrite"),
        (run[0], tmp_path / "m.safetensors", "--output is a folder"),
        (run[0], "gs://bucket/model", "on this machine"),
        (exported, tmp_path / "copy", "exported already"),
        (exported, exported, "choose another --output"),
    ):
        with pytest.raises(UserError, match=reason):
            exporting.export(place, output, QUIET, overwrite=place == output)
    assert before == {path: path.read_bytes() for path in before}
    _bytes(lambda data: b"", "model.safetensors")(model)
    (model / "mine.txt").touch()
    exporting.export(run[0], model, QUIET, overwrite=True)
    assert (model / "mine.txt").exists()
    chex.assert_trees_all_equal(jax.device_get(trained.load(model).params), run[1].ema)


def test_the_card_tells_measures_of_these_weights_only(run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    digest = integrity.digest(run[1].ema)
    rows = [
        {"name": "bicubic", "model": None, "sampler": None, "steps": 0, "psnr": 30.0},
        {"name": "ddim 5", "model": "mine", "sampler": "ddim", "steps": 5, "psnr": 31.234},
    ]
    record = {"models": {"mine": {"sha256": digest}}, "rows": rows, "step": STEP, "pictures": 12, "split": "held-out"}
    others = {"models": {"mine": {"sha256": "0"}}}, {"step": STEP + 1}, {"rows": None}, {"pictures": "<b>"}
    for number, (change, measured) in enumerate([({}, True), *((other, False) for other in others)]):
        (workdir / "evaluation.json").write_text(json.dumps(record | change))
        exporting.export(workdir, tmp_path / str(number), QUIET)
        text = (tmp_path / str(number) / "README.md").read_text()
        assert ("| ddim 5 | 31.23 |" in text and "| bicubic | 30.00 |" in text) == measured
        assert ("Not measured" in text) != measured


@pytest.mark.parametrize(
    ("changes", "kind"),
    [((), "image-to-image"), (("task.name=unconditional", "task.residual=False"), "unconditional-image-generation")],
)
def test_the_card_is_one_of_the_hub(changes, kind):
    hub = pytest.importorskip("huggingface_hub")
    built = experiment.build(tiny.tiny_config(*changes))
    data = {"name": "my\nfaces|<script>", "fingerprint": None}
    about = {"step": 1, "weights": "ema", "parameters": 5, "data": data, "parent": None}
    text = card.text("run\x1b", built, about, None)
    found = hub.ModelCard(text).data.to_dict()
    assert found["pipeline_tag"] == kind and found["library_name"] == "dream_jax" and "dream" in found["tags"]
    assert all(character.isprintable() or character == "\n" for character in text)
    (line,) = [line for line in text.splitlines() if "training pictures" in line]
    assert "<" not in line and len(re.findall(r"(?<!\\)\|", line)) == 3


def test_the_card_says_what_each_task_does_and_how_it_is_used():
    data = {"name": "faces", "fingerprint": None}
    about = {"step": 1, "weights": "ema", "parameters": 5, "data": data, "parent": None}
    said = set()
    for name in TASKS:
        classes = ["data.classes=a,b,c"] if name == "class_conditional" else []
        built = experiment.build(tiny.tiny_config(f"task.name={name}", "task.residual=False", *classes))
        text = card.text("mine", built, about, None)
        said.add(re.search(r"A diffusion model that (.*), trained", text)[1])
        assert ("dream_jax restore --model" in text) == built.task.paired
        assert ("--mask MASK.png" in text) == (name == "inpainting")
        assert ("dream_jax generate --model" in text) != built.task.paired
    assert len(said) == len(TASKS) and "enlarges pictures 2 times" in said


@pytest.mark.parametrize(
    ("changes", "told", "untold"),
    [
        (("task.degradation=mixed",), ["task.width", "task.deviation", "task.quality"], ["task.masks"]),
        ((), ["task.degradation"], ["task.width"]),
        (("task.name=inpainting",), ["task.masks", "task.unknown"], ["task.degradation"]),
        (
            ("task.name=paired", "data.channels=1", "task.target=classes", "task.num_classes=3"),
            ["task.target", "task.num_classes", "data.condition_channels", "data.condition_bits"],
            ["data.condition_range"],
        ),
        (("task.name=class_conditional", "data.classes=a,b,c"), ["task.drop_label", "data.classes"], []),
    ],
)
def test_the_card_tells_the_keys_of_its_task_and_no_path(changes, told, untold):
    built = experiment.build(tiny.tiny_config("task.residual=False", *changes))
    config = keys.nest(keys.flatten(built.config))
    paths = {name for name, key in keys.KEYS.items() if key.optional is str} - {"data.tfds"}
    assert len(paths) > 10
    for name in paths:
        section, leaf = name.split(".")
        config[section][leaf] = f"/home/me/{leaf}"
    data = {"name": "faces", "fingerprint": None}
    about = {"step": 1, "weights": "ema", "parameters": 5, "data": data, "parent": None}
    text = card.text("mine", built._replace(config=config), about, None)
    names = re.findall(r"^\| ((?:task|data|sampling|evaluation|network)\.\w+) \|", text, re.M)
    assert "/home" not in text and set(told) <= set(names) and len(set(names)) == len(names)
    assert not set(untold) & set(names) and all(name.startswith(("task.", "data.c")) for name in names)


def test_commands_take_one_of_the_two(run, exported, tmp_path, capsys):
    measure = "evaluate", "--output", str(tmp_path / "e.json")
    for command, reason in (
        (("evaluate", "--model", exported), "--output FILE.json"),
        (measure, "give --workdir RUN or --model FOLDER"),
        ((*measure, "--workdir", exported), "give it with --model"),
        ((*measure, "--model", run[0]), "given with --workdir"),
        ((*measure, "--model", exported, exported), "the same one twice"),
        (("export", "--workdir", "hf://me/tiny", "--output", tmp_path / "m"), "give it with --model"),
        (("export", "--workdir", run[0], "--output", tmp_path / "m", "--steps", "3"), "for --format stablehlo"),
    ):
        assert main(list(map(str, command))) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["upscale", "--workdir", "a", "--model", "b", "--input", "c", "--output", "d"])


def test_pictures_that_are_not_there_are_not_replaced_without_a_word(model, tmp_path, capsys):
    """Those of the folder that the model was trained on, by the photographs that this program brings."""
    _json(lambda record: record | {"data": {"kind": "folder", "name": "faces"}})(model)
    assert main(["evaluate", "--model", str(model), "--output", str(tmp_path / "e.json")]) == 2
    assert "--pictures FOLDER or --config.data.folder=FOLDER" in capsys.readouterr().err


def test_the_card_names_several_folders_and_arrays(tmp_path):
    for folder in ("a/train", "b/train"):
        (tmp_path / folder).mkdir(parents=True)
    names = {f"{tmp_path}/a/train": "train", f"{tmp_path}/a/train,{tmp_path}/b/train": "train-and-1-more"}
    names[f"{tmp_path}/faces.h5:train/images"] = "faces.h5"
    for where, name in names.items():
        assert folders._data(tiny.tiny_config(f"data.folder={where}"))["name"] == name


def test_the_card_names_what_the_program_brings():
    names = [
        folders._data(tiny.tiny_config(f"data.bundled={name}"))["name"] for name in keys.KEYS["data.bundled"].choices
    ]
    assert len(set(names)) == len(names) == 2 and "scenes" in names[1]


def test_every_text_that_may_be_none_stays_behind_but_names_of_data():
    """Also those of keys that are still to come: a path that leaves by mistake cannot be called back."""
    config = keys.defaults()
    given = {name for name, key in keys.KEYS.items() if key.optional is str}
    for name in given:
        section, leaf = name.split(".")
        config[section][leaf] = "/home/me"
    flat = keys.flatten(model_folder.portable(config))
    features = {f"data.{name}_key" for name in ("image", "lr", "condition", "label")}
    assert {name for name in given if flat[name] is not None} == {"data.tfds", *features}
