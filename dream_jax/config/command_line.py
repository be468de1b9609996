"""Config files, and the arguments `--config.KEY=VALUE` that change them."""

import ast
import copy
import runpy
import sys
from pathlib import Path

from ml_collections import ConfigDict

from dream_jax.config import checks
from dream_jax.config.keys import KEYS, flatten
from dream_jax.errors import UserError, shown

_PACKAGE = Path(__file__).resolve().parents[1]


def recipes() -> Path:
    """The folder of the recipes that come with the program: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def load(path: str) -> ConfigDict:
    """Runs a config file, as any program of Python, and returns the ConfigDict that its `get_config()` returns.

    path may also be the name of a recipe, like `quickstart`. Raises UserError for a file that is missing or does not
    run, and for keys and types that `keys.KEYS` lacks.
    """

    def get_config(module):
        if "get_config" not in module:
            raise UserError("a config file must define get_config()")
        config = module["get_config"]()
        if not isinstance(config, ConfigDict):
            raise UserError(f"its get_config() must return a ConfigDict, not {checks.cut(config)}")
        checks.check_types(config)
        return config

    return use(path, get_config)


def use(path: str, function):
    """`function({name: what the config file defines})`; path and errors as for `load`."""
    file = Path(path)
    if not file.is_file():
        file = recipes() / f"{path}.py"
    if not file.is_file():
        names = sorted(recipe.stem for recipe in recipes().glob("[a-z]*.py"))
        raise UserError(f"{shown(path)}: there is no such config file, and no such recipe ({', '.join(names)})")
    # Files beside it may be imported as `configs.NAME`, whatever the current folder; not those of an installed package,
    # beside which lie modules of the program itself.
    root = file.resolve().parent.parent
    added = [] if root == _PACKAGE else [str(root)]
    sys.path[:0] = added
    try:
        return function(runpy.run_path(str(file)))
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {shown(error)[:500]}"
        raise UserError(f"{shown(path)}: this config file does not run ({said})") from error
    finally:
        for folder in added:
            sys.path.remove(folder)


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Applies `--config.key=value` (or `--config.key value`) arguments to a copy."""
    config = copy.deepcopy(config)
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        name, equals, text = argument.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"{shown(argument)[:200]}: not an option; a config key is given as --config.KEY=VALUE")
        if not equals:
            if not arguments:
                name = shown(argument)[:200]
                raise UserError(f"{name}: its value is missing; write {name}=VALUE")
            text = arguments.pop(0)
        key = name.removeprefix("--config.")
        _set(config, key, text)
        if key == "steps" and "epochs" in config:
            # The two say the same thing; the one given last counts.
            config.epochs = None
    return config


def _set(config, key, text):
    known = flatten(config)
    if key not in known:
        raise checks.unknown(key, known)
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    kind = config.get_type(last)
    value = _parse(text, kind)
    try:
        # ConfigDict would take None for anything, and True for a number.
        if (value is None and not KEYS[key].optional) or (isinstance(value, bool) and kind is not bool):
            raise TypeError
        config[last] = value
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"config key {key!r} takes {checks.kind_name(kind)}, not {checks.cut(text)}") from None


def _parse(text, kind):
    if text in ("None", "null"):
        return None
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is tuple:
        items = [item for item in text.strip("()[] ").split(",") if item.strip()]
        return tuple(_literal(item.strip()) for item in items)
    return _literal(text)


def _literal(text):
    try:
        return float(text) if text.lower().strip("+-") in ("inf", "nan") else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text
