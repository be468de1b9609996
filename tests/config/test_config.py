import json
from pathlib import Path

import pytest
import tiny
from ml_collections.config_dict import FieldReference

from dream_jax.config import checks, command_line, keys, records
from dream_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").glob("*.py"))
CONSERVATIVE = "objective.name=conservative_dream task.name=unconditional schedule.continuous=False"


@pytest.fixture
def base():
    return command_line.load(ROOT / "configs" / "base.py")


def changed(base, *arguments):
    return command_line.override(base, [f"--config.{argument}" for argument in arguments])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_is_valid_and_survives_its_workdir(file, tmp_path):
    config = checks.validate(command_line.load(file))
    records.save(config, tmp_path / "config.json")
    again = records.read(tmp_path / "config.json")
    assert keys.flatten(again) == keys.flatten(config)
    assert records.differences(again, config) == []
    checks.validate(again)


def test_there_are_experiments():
    assert {"base", "quickstart"} <= {file.stem for file in FILES}


def test_the_keys_that_may_be_none_are_the_placeholders(base):
    def placeholders(config, prefix=""):
        for key, value in config.items(preserve_field_references=True):
            if isinstance(value, FieldReference):
                yield f"{prefix}{key}", value.get_type()
            elif hasattr(value, "items"):
                yield from placeholders(value, f"{prefix}{key}.")

    assert dict(placeholders(base)) == {name: key.optional for name, key in keys.KEYS.items() if key.optional}


@pytest.mark.parametrize(
    "argument, key, value",
    [
        ("steps=7", "steps", 7),
        ("ema_decay=0", "ema_decay", 0.0),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("task.residual=true", "task.residual", True),
        ("task.residual=False", "task.residual", False),
        ("task.name=unconditional", "task.name", "unconditional"),
        ("objective.p=None", "objective.p", None),
        ("objective.p=null", "objective.p", None),
        ("objective.p=2", "objective.p", 2.0),
        ("evaluation.steps=1,2", "evaluation.steps", (1, 2)),
        ("evaluation.steps=(3,)", "evaluation.steps", (3,)),
        ("evaluation.steps=4", "evaluation.steps", (4,)),
        ("evaluation.samplers=ddim", "evaluation.samplers", ("ddim",)),
        ("network.attention_resolutions=()", "network.attention_resolutions", ()),
        ("optimizer.betas=0.5,0.9", "optimizer.betas", (0.5, 0.9)),
        ("data.folder=/some/where=else", "data.folder", "/some/where=else"),
        ("data.folder=12", "data.folder", "12"),
        ("evaluation.crop=64", "evaluation.crop", 64),
    ],
)
def test_overrides(base, argument, key, value):
    result = keys.flatten(changed(base, argument))[key]
    assert result == value and type(result) is type(value)
    key, _, text = argument.partition("=")
    assert keys.flatten(command_line.override(base, [f"--config.{key}", text])) == keys.flatten(changed(base, argument))


def test_overriding_leaves_the_original(base):
    changed(base, "steps=7", "objective.p=None")
    assert base.steps != 7 and base.objective.p == 1.0


@pytest.mark.parametrize(
    "key, near",
    [
        ("objective.pp", "'objective.p'"),
        ("learning_rate", "'optimizer.learning_rate'"),
        ("optimizer.learningrate", "'optimizer.learning_rate'"),
        ("batchsize", "'batch_size'"),
        ("objective", r"'objective\."),
        ("evaluation.step", "'evaluation.steps'"),
        ("zzzz", "'"),
    ],
)
def test_an_unknown_key_names_the_nearest(base, key, near):
    with pytest.raises(UserError, match=f"config key '{key}' is unknown; did you mean .*{near}"):
        changed(base, f"{key}=1")


@pytest.mark.parametrize(
    "argument, wanted",
    [
        ("steps=abc", "a whole number"),
        ("steps=1.5", "a whole number"),
        ("steps=True", "a whole number"),
        ("steps=None", "a whole number"),
        ("steps=1,2", "a whole number"),
        ("steps=", "a whole number"),
        ("evaluation.crop=big", "a whole number"),
        ("ema_decay=much", "a number"),
        ("ema_decay=True", "a number"),
        ("objective.p=much", "a number"),
        ("task.residual=2", "True or False"),
        ("task.residual=maybe", "True or False"),
        ("task.name=None", "a text"),
        ("evaluation.steps=None", "a list"),
    ],
)
def test_a_wrong_type_is_refused(base, argument, wanted, tmp_path):
    with pytest.raises(UserError, match=f"'{argument.partition('=')[0]}' takes {wanted}"):
        changed(base, argument)
    # The types outlive the workdir, also where the value is None.
    records.save(base, tmp_path / "config.json")
    with pytest.raises(UserError, match=wanted):
        changed(records.read(tmp_path / "config.json"), argument)


@pytest.mark.parametrize("arguments", [["--steps=7"], ["steps=7"], ["--config.steps"], ["config.steps=7"]])
def test_what_is_not_an_override_is_refused(base, arguments):
    with pytest.raises(UserError):
        command_line.override(base, arguments)


@pytest.mark.parametrize(
    "key, arguments",
    [
        ("objective.p", "objective.p=inf"),
        ("objective.p", "objective.p=nan"),
        ("objective.p", "objective.p=-1"),
        ("objective.name", "objective.name=dreams"),
        ("objective.kind", "objective.kind=noise"),
        ("objective.kind", "objective.kind=flow"),
        ("objective.kind", "schedule.name=flow"),
        ("objective.kind", "objective.name=conservative_dream objective.kind=x0 task.name=unconditional"),
        ("task.name", "objective.name=conservative_dream"),
        ("schedule.continuous", "objective.name=conservative_dream task.name=unconditional"),
        ("network.weights", "network.weights=w.pth network.name=generation"),
        ("data.eval_folder", "data.eval_folder=pictures"),
        ("data.eval_split", "data.tfds=cifar10 data.eval_split=train"),
        ("seed", "seed=4294967296"),
        ("objective.maximum", "objective.minimum=0.6 objective.maximum=0.5"),
        ("objective.mix", "objective.mix=1.5"),
        ("objective.rate", "objective.weight=exponential objective.rate=0"),
        ("objective.min_snr_gamma", "objective.min_snr_gamma=0"),
        ("objective.ramp_epochs", "objective.ramp_epochs=-1"),
        ("objective.weight", "objective.weight=cubic"),
        ("objective.distance", "objective.distance=l3"),
        ("task.kernel", "task.kernel=bicubic"),
        ("optimizer.decay_steps", "optimizer.decay=cosine"),
        ("optimizer.decay_steps", "optimizer.decay=linear optimizer.decay_steps=5 optimizer.warmup_steps=5"),
        ("optimizer.decay_steps", "optimizer.decay_steps=5"),
        ("task.scale", "task.scale=0"),
        ("task.gain", "task.gain=0"),
        ("image_size", "image_size=72"),
        ("image_size", "image_size=112 task.scale=3 network.attention_resolutions=7"),
        ("evaluation.crop", "evaluation.crop=100"),
        ("batch_size", "batch_size=6 accumulation=4"),
        ("batch_size", "batch_size=0"),
        ("accumulation", "accumulation=-1"),
        ("network.norm_groups", "network.channels=48"),
        ("network.channels", "network.channels=33"),
        ("network.channel_multipliers", "network.channel_multipliers="),
        ("network.channel_multipliers", "network.channel_multipliers=1,0.5"),
        ("network.attention_resolutions", "network.attention_resolutions=17"),
        ("network.dropout", "network.dropout=1"),
        ("network.num_heads", "network.name=generation network.num_heads=3"),
        ("network.patch", "network.name=generation network.patch=2 network.attention_resolutions="),
        ("schedule.beta_end", "schedule.beta_end=1e-7"),
        ("schedule.beta_max", "schedule.name=cosine schedule.beta_max=1"),
        ("schedule.num_steps", "schedule.num_steps=0"),
        ("samples.steps", "samples.steps=2001"),
        ("samples.steps", "schedule.num_steps=10"),
        ("evaluation.steps", "evaluation.steps=1,2001"),
        ("evaluation.steps", "evaluation.steps=0"),
        ("evaluation.steps", "evaluation.steps=1,two"),
        ("evaluation.steps", "evaluation.steps="),
        ("evaluation.samplers", "evaluation.samplers=ddim,dmpp"),
        ("evaluation.samplers", "evaluation.samplers="),
        ("samples.sampler", "samples.sampler=dmpp"),
        ("optimizer.name", "optimizer.name=adagrad"),
        ("optimizer.learning_rate", "optimizer.learning_rate=nan"),
        ("optimizer.warmup_steps", "optimizer.warmup_steps=-1"),
        ("optimizer.clip", "optimizer.clip=0"),
        ("optimizer.betas", "optimizer.betas=0.9"),
        ("optimizer.betas", "optimizer.betas=0.9,1"),
        ("optimizer.betas", "optimizer.betas=0.9,high"),
        ("ema_decay", "ema_decay=1.1"),
        ("data.eval_percent", "data.eval_percent=100"),
        ("data.tfds", "data.tfds=celeb_a data.folder=pictures"),
        ("compute_dtype", "compute_dtype=float16"),
        ("checkpoint.every", "checkpoint.every=0"),
        ("objective.start_step", "objective.start_step=-1"),
        ("objective.estimate_every", f"{CONSERVATIVE} objective.estimate_every=2"),
        ("objective.estimate_every", "objective.estimate_every=0"),
    ],
)
def test_impossible_values_are_refused_by_name(base, key, arguments):
    with pytest.raises(UserError, match=f"^{key} = "):
        checks.validate(changed(base, *arguments.split()))


@pytest.mark.parametrize("name", [name for name, key in keys.KEYS.items() if isinstance(key.default, tuple)])
@pytest.mark.parametrize("value", [(True,), (True, True), (False, True), (["box"],), ({},)], ids=str)
def test_a_list_of_what_is_no_number_and_no_name_is_refused(name, value):
    assert keys.KEYS[name].refuses(value)


def test_names_of_classes_are_no_longer_than_a_config_can_hold(tmp_path):
    fitting = tuple(f"{'é' * 80}{number}" for number in range(1000))
    assert keys.class_names(fitting) is None
    nested = keys.nest(keys.flatten(command_line.load(ROOT / "configs" / "base.py")) | {"data.classes": fitting})
    records.save(nested, tmp_path / "config.json")
    assert tuple(records.read(tmp_path / "config.json").data.classes) == fitting
    assert "the 2000 names take 9" in keys.class_names(tuple(f"{name}{i}" for name in fitting for i in "ab"))


def test_p_infinite_is_told_what_to_use_instead(base):
    with pytest.raises(UserError, match="null"):
        checks.validate(changed(base, "objective.p=inf"))


def test_a_value_of_the_wrong_type_in_a_workdir_is_a_plain_message(base, tmp_path):
    records.save(base, tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text()) | {"steps": "abc"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="'steps' takes a whole number, not 'abc'"):
        checks.validate(records.read(tmp_path / "config.json"))


def test_none_is_refused_where_a_value_is_needed(base):
    base.batch_size = None
    with pytest.raises(UserError, match="batch_size"):
        checks.validate(base)


def test_a_validated_config_is_frozen(base):
    with pytest.raises(AttributeError):
        checks.validate(base).steps = 3


def test_differences_name_what_would_have_changed_the_run(base):
    new = changed(base, "seed=1", "objective.p=None", "network.channel_multipliers=1,2")
    assert records.differences(base, new) == [
        "network.channel_multipliers: (1, 2, 4, 8, 8) -> (1, 2)",
        "objective.p: 1.0 -> None",
        "seed: 0 -> 1",
    ]


def test_what_may_change_is_no_difference(base):
    arguments = "steps=9", "epochs=2", "checkpoint.every=5", "samples.count=1", "evaluation.steps=3", "data.workers=1"
    assert records.differences(base, changed(base, *arguments)) == []


def config_file(tmp_path, text):
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1", "get_config"),
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_config_file_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"mine\.py: .*{message}"):
        command_line.load(config_file(tmp_path, text))


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.py"):
        command_line.load(tmp_path / "none.py")


def test_a_misspelt_key_in_an_experiment_is_refused(base):
    with pytest.raises(AttributeError, match="objective_p"):
        base.objective.objective_p = 1.0


def test_a_config_that_lacks_a_key_is_refused(base, tmp_path):
    values = base.to_dict()
    del values["objective"]["mix"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"lacks a key: .*mix"):
        checks.validate(records.read(tmp_path / "config.json"))


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\x00"])
def test_a_damaged_config_of_a_workdir_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        records.read(tmp_path / "config.json")


def test_a_folder_that_is_no_workdir_is_named(tmp_path):
    with pytest.raises(UserError, match="workdir"):
        records.read(tmp_path / "config.json")


def test_steps_and_epochs_given_last_count(base):
    base.epochs = 3
    assert changed(base, "steps=7").epochs is None and changed(base, "steps=7", "epochs=2").epochs == 2


@pytest.mark.parametrize(
    "change",
    [
        *(
            "image_size=8",
            "evaluation.crop=8",
            "sampling.momentum=0",
            "sampling.eps_scale=0",
            "sampling.eps_scale_slope=-2",
        ),
        *("sampling.spacing=even", "sampling.clip=hard", "sampling.percentile=2", "sampling.shift_window=-1"),
        *("evaluation.seeds=1,1", "evaluation.seeds=-1,", "evaluation.protocol=best", "evaluation.learned=vgg,"),
        *("sampling.start_seed=-1", "task.name=unconditional sampling.project=True"),
        *(
            "task.name=unconditional sampling.start_seed=1",
            "task.name=unconditional evaluation.whole=True",
            "evaluation.against=train",
        ),
        *("evaluation.crop=24 evaluation.learned=lpips_alex,",),
    ],
)
def test_what_sampling_and_evaluation_cannot_take_is_refused(change):
    changes = change.split()
    key = changes[-1].split("=")[0] if "crop=24" not in change else "evaluation.crop"
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        tiny.tiny_config(*changes)


def test_a_workdir_of_before_a_key_that_does_not_change_training_came_is_read(tmp_path):
    path = tmp_path / "config.json"
    old = tiny.tiny_config().to_dict()
    del old["sampling"], old["evaluation"]["seeds"]
    old["evaluation"] |= {"seed": 5, "steps": [3], "ddim_eta": 0.5}
    path.write_text(json.dumps(old))
    read = checks.validate(records.read(path))
    assert read.sampling.to_dict() == tiny.tiny_config().sampling.to_dict() | {"eta": 0.5}
    assert read.evaluation.seeds == (5,)
    assert read.evaluation.steps == (3,) and "seed" not in read.evaluation
    for key in ("start_step", "estimate_every"):
        del old["objective"][key]
    path.write_text(json.dumps(old))
    assert records.differences(records.read(path), tiny.tiny_config()) == []
    assert records.differences(records.read(path), tiny.tiny_config("objective.estimate_every=2")) == [
        "objective.estimate_every: 1 -> 2"
    ]
    del old["objective"]["kind"]
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match="kind"):
        checks.validate(records.read(path))


GONE = {"estimate_share": 1.0, "estimate_pick": "heaviest", "estimate_dtype": "same"}


def test_keys_that_are_gone_are_left_out_where_they_did_nothing_and_refused_otherwise(tmp_path):
    path = tmp_path / "config.json"
    old = tiny.tiny_config().to_dict()
    path.write_text(json.dumps(old | {"objective": old["objective"] | GONE}))
    assert keys.flatten(checks.validate(records.read(path))) == keys.flatten(tiny.tiny_config())
    for key, value in (("estimate_share", 0.5), ("estimate_dtype", "bfloat16")):
        path.write_text(json.dumps(old | {"objective": old["objective"] | GONE | {key: value}}))
        with pytest.raises(UserError, match=f"trained with objective.{key} = {value}"):
            records.read(path)


def test_no_exponent_switches_dream_off_for_the_power_weight_alone(base):
    checks.validate(changed(base, "objective.p=None"))
    checks.validate(changed(base, "objective.name=standard", "objective.weight=linear", "objective.p=None"))
    with pytest.raises(UserError, match=r"^objective\.p = None: .*objective\.name = standard"):
        checks.validate(changed(base, "objective.p=None", "objective.weight=linear"))


def test_a_recipe_is_found_by_its_name():
    assert command_line.load("quickstart").to_dict() == command_line.load(ROOT / "configs" / "quickstart.py").to_dict()
    with pytest.raises(UserError, match=r"quikstart: .*no such recipe .*quickstart"):
        command_line.load("quikstart")


def test_the_page_of_keys_is_the_table():
    assert (ROOT / "docs" / "keys.md").read_text().endswith("\n\n" + keys.markdown())
