"""A model's card: README.md with the front matter that the Hugging Face Hub reads."""

from dream_jax.config import keys
from dream_jax.errors import shown
from dream_jax.evaluation import tables
from dream_jax.experiment import Experiment
from dream_jax.metrics import METRICS

# What models do, by the name of their task or what it makes; others restore pictures.
_DOES = {
    "unconditional": "makes pictures from noise",
    "class_conditional": "makes pictures of a class from noise",
    "inpainting": "paints the masked part of pictures",
    "deblurring": "makes blurred pictures sharp",
    "denoising": "takes noise out of pictures",
    "jpeg": "takes the traces of JPEG compression out of pictures",
    "colourisation": "gives colours to grey pictures",
    "paired": "makes pictures of others of the same place and size",
    "depth": "tells the depth of pictures",
    "classes": "tells the classes of the pixels of pictures",
}

# Keys that say what a task is besides its own in the section `task`, by its name or its degradation.
_MORE = {
    "mixed": ("task.width", "task.deviation", "task.quality"),
    "paired": ("task.num_classes", "data.condition_channels", "data.condition_bits", "data.condition_range"),
    "class_conditional": ("data.classes", "task.num_classes"),
}

# Settings of the objective that are told even where they are the usual ones.
_TOLD = "name", "kind", "distance"


def record_of(record: dict, about: dict) -> dict | None:
    """The part of an evaluation's record that is of these weights, or None: {names, rows, pictures, split}.

    Args:
      record: of evaluation.json, which may be of other weights or of another program.
      about: with step and sha256.
    """
    try:
        models = record["models"]
        ours = [name for name, model in models.items() if model["sha256"] == about["sha256"]]
        rows = [row for row in record["rows"] if row["model"] in (None, *ours)]
        names = tables.measured(rows)
        table = [[row["name"], *(_cell(row, name) for name in names)] for row in rows]
        if not ours or not names or record["step"] != about["step"]:
            return None
        split = "whole" if record.get("whole") else record.get("split", "held-out")
        return {"names": names, "table": table, "pictures": int(record["pictures"]), "split": split}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _cell(row, name):
    value, spread = row.get(name), row.get(f"{name}_spread")
    if value is None:
        return ""
    return format(value, METRICS[name].digits) + ("" if spread is None else f" ± {spread:.1g}")


def text(name: str, experiment: Experiment, about: dict, record: dict | None) -> str:
    """The card.

    Args:
      name: what the model is called.
      about: what model.json says.
      record: of `record_of`.
    """
    parts = [
        _front_matter(experiment),
        f"# {_plain(name)}\n\n{_summary(experiment)}",
        f"## What it is\n\n{_table(['', ''], _facts(experiment, about))}",
        f"## Measured\n\n{_measures(record)}",
        f"## How to use it\n\n{_usage(experiment)}",
        "## Licence\n\nThe author has not said yet: say it here, and as `license:` at the top of this file.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(experiment):
    paired = experiment.task.paired
    kind = "image-to-image" if paired else "unconditional-image-generation"
    tags = ["diffusion", experiment.config.objective.name, experiment.config.task.name.replace("_", "-"), "jax", "flax"]
    if "dream" in tags[1]:
        tags.append("arxiv:2312.00210")
    listed = "\n".join(f"- {tag}" for tag in dict.fromkeys(tags))
    return f"---\nlibrary_name: dream_jax\npipeline_tag: {kind}\ntags:\n{listed}\n---"


def _summary(experiment):
    task, title = experiment.task, experiment.objective.title
    does = _DOES.get(task.measured_as) or _DOES.get(experiment.config.task.name, "restores pictures")
    if task.scale != 1:
        does = f"enlarges pictures {task.scale:g} times"
    return f"A diffusion model that {does}, trained with dream_jax. Its objective: {title}."


def _facts(experiment, about):
    config, data = experiment.config, about["data"]
    defaults = {key: entry.default for key, entry in keys.KEYS.items()}
    objective = [
        f"{key} = {value}"
        for key, value in config.objective.to_dict().items()
        if key in _TOLD or value != defaults[f"objective.{key}"]
    ]
    task = [("task", config.task.name)]
    if experiment.task.scale > 1:
        task += [("scale", experiment.task.scale), ("kernel of the low-resolution pictures", config.task.kernel)]
    flat = keys.flatten(config)
    task += [(name, flat[name]) for name in _of_task(config) if flat[name] not in (None, ())]
    network = [f"{key} = {value}" for key, value in config.network.to_dict().items() if key in ("name", "channels")]
    network.append("channel_multipliers = " + ",".join(map(str, config.network.channel_multipliers)))
    trained_on = f"{_plain(data['name'])} ({data['fingerprint'] or 'no fingerprint'})"
    weights = "averaged (EMA)" if about["weights"] == "ema" else "of the last step"
    rows = [
        *task,
        ("objective", ", ".join(objective)),
        ("noise schedule", f"{config.schedule.name}, {experiment.schedule.num_steps} steps"),
        ("network", ", ".join(network)),
        ("parameters", f"{about['parameters']:,}"),
        ("training crop", f"{config.image_size} x {config.image_size} pixels"),
        ("batch", config.batch_size),
        ("steps trained", about["step"]),
        ("weights", weights),
        ("training pictures", trained_on),
    ]
    if about["parent"]:
        rows.append(("began with", ", ".join(f"{key} {value}" for key, value in about["parent"].items())))
    return rows


def _of_task(config):
    """The names of keys that say what a task is; none of them is a path."""
    name = config.task.name
    # What keys are of is said at the beginning of what they are.
    own = [key for key, entry in keys.KEYS.items() if key.startswith("task.") and entry.about.startswith(f"{name}:")]
    more = _MORE.get(config.task.degradation if name == "super_resolution" else name, ())
    return [key for key in (*own, *more) if key not in ("task.scale", "task.kernel")]


def _measures(record):
    if record is None:
        return "Not measured."
    titles = [METRICS[name].title for name in record["names"]]
    return f"On {record['pictures']} {_plain(record['split'])} pictures:\n\n" + _table(["", *titles], record["table"])


def _usage(experiment):
    command = "generate --model FOLDER --output PICTURES --count 64"
    if experiment.task.paired:
        mask = " --mask MASK.png" if experiment.task.beside == "mask" else ""
        command = f"restore --model FOLDER --input PICTURE.png --output RESULT.png{mask}"
    return (
        f"```sh\npython -m dream_jax {command}\npython -m dream_jax train --config CONFIG --workdir RUN "
        "--init_from FOLDER\n```\n\nFOLDER is where these files are, or their address on the Hub: `hf://OWNER/NAME`. "
        "`config.json` holds every setting of the training."
    )


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(cell):
    """A text that stays within its cell and its line."""
    return shown(cell).replace("|", "\\|").replace("<", "&lt;")
