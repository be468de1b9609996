import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny
from stand_ins import QUIET

from dream_jax import commands
from dream_jax.__main__ import main
from dream_jax.config import command_line, keys, records
from dream_jax.data import spans
from dream_jax.errors import UserError
from dream_jax.evaluation import comparison, published, report, verdicts
from dream_jax.files import atomic

CHANGES = "steps=2", "image_size=16", "evaluation.crop=32", "evaluation.steps=1,2", "optimizer.learning_rate=0.001"
CHANGES = *CHANGES, "checkpoint.every=1", "checkpoint.keep=2"
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import tiny
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(tiny.tiny_config(*{changes!r}).to_dict())

def get_comparison():
    return {{"variants": {variants!r}, "seeds": (0,), "points": (1, 2)}}
"""
TWO = {"standard": {"objective.name": "standard"}, "DREAM": {}}


def write(folder, variants):
    path = folder / "compared.py"
    path.write_text(CONFIG.format(tests=str(tiny.ROOT / "tests"), changes=CHANGES, variants=variants))
    return str(path)


def test_runs_are_measured_in_the_range_that_they_are_trained_in(tmp_path, monkeypatch):
    changes = f"--config.data.folder={tmp_path}", "--config.data.percentile=99"
    more = {"wider": {"data.percentile": 100.0}, "given": {"data.range": (0.0, 7.0)}}
    chosen, measured = comparison.load(write(tmp_path, TWO | more), list(changes)), []

    def measure(settings):
        measured.append((settings.folder, settings.percentile))
        return 1.0, settings.percentile

    def train(config, workdir):
        assert config.data.range == (1.0, 99.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(spans, "measure", measure)
    ranges = [member.config.data.range for member in comparison.runs(chosen, tmp_path / "work")]
    assert ranges == [(1.0, 99.0), (1.0, 99.0), (1.0, 100.0), (0.0, 7.0)]
    # Once for all with the same pictures.
    assert measured == [(str(tmp_path), 99.0), (str(tmp_path), 100.0)]
    with pytest.raises(KeyboardInterrupt):
        comparison.advance(chosen, tmp_path / "work", train, QUIET)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, trained_once):
    """(workdir, what was trained in order, the first record) of one stopped three times, and given a variant later.

    All variants have the weights of one run.
    """
    folder, ready = tmp_path_factory.mktemp("compared"), trained_once("compared", *CHANGES)
    workdir, trained, kills = folder / "work", [], {2, 4, 7}

    def train_or_stop(config, run, console, evaluates):
        trained.append(f"{run.name}-{config.steps}")
        if len(trained) in kills:
            raise KeyboardInterrupt
        assert not evaluates
        if not run.exists():
            shutil.copytree(ready, run)
            (run / "evaluation.json").unlink()
            shutil.rmtree(run / "checkpoints" / "2")
            records.save(config.copy_and_resolve_references(), run / "config.json")
        else:
            shutil.copytree(ready / "checkpoints" / "2", run / "checkpoints" / "2")

    def run(variants):
        return main(["compare", "--config", write(folder, variants), "--workdir", str(workdir)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "train_and_evaluate", train_or_stop)
        with pytest.MonkeyPatch.context() as quick:
            quick.setattr(report, "write", lambda record, _, path: atomic.write_json(path.with_suffix(".json"), record))
            assert [run(TWO) for _ in range(3)] == [130, 130, 0]
        before = json.loads((workdir / "report.json").read_text())
        three = {**TWO, "p=3": {"objective.p": 3.0}}
        assert [run(three) for _ in range(2)] == [130, 0]
    return workdir, trained, before


def test_a_comparison_goes_on_and_repeats_nothing(compared):
    workdir, trained, before = compared
    # They take turns; the second, the fourth and the seventh start were stopped.
    assert trained == [
        *("standard-0-1", "DREAM-0-1", "DREAM-0-1", "standard-0-2", "standard-0-2", "DREAM-0-2"),
        *("p=3-0-1", "p=3-0-1", "p=3-0-2"),
    ]
    after = json.loads((workdir / "report.json").read_text())
    kept = [row for row in after["rows"] if row["variant"] != "p=3"]
    assert kept == before["rows"] and len(after["rows"]) == 3 * 2 * 2


def test_a_row_is_what_the_runs_own_evaluation_measures(compared):
    workdir, *_ = compared
    main(["evaluate", "--workdir", str(workdir / "runs" / "DREAM-0")])
    rows = json.loads((workdir / "runs" / "DREAM-0" / "evaluation.json").read_text())["rows"]
    record = json.loads((workdir / "report.json").read_text())
    for steps in (1, 2):
        (ours,) = verdicts.of(record["rows"], variant="DREAM", seed=0, point=2, sampler="ddim", steps=steps)
        (theirs,) = (row for row in rows if row["steps"] == steps)
        for metric in verdicts.metrics_of([ours]):
            assert verdicts.mean(ours, metric) == pytest.approx(theirs[metric], rel=1e-6)


def test_the_report_is_whole(compared):
    page = (compared[0] / "report.html").read_text()
    # Nothing is fetched: what is linked lies within the page.
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "@import" not in page and "url(http" not in page
    assert (
        page.count("<svg") == 5 * 3 + 1
        and "PSNR, dB: the last of standard at this share of its steps" in page
        and "data:image/png;base64," in page
    )


def test_the_report_opens_in_a_browser(compared, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium here")
    options = "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"
    file = (compared[0] / "report.html").as_uri()
    shown = subprocess.run([browser, *options, file], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    # The script has filled the lists and put two pictures over each other.
    assert shown.stdout.count("<option") >= 2 * 5 and re.search(r'id="over"[^>]*src="data:image/png', shown.stdout)
    assert "CONSOLE" not in shown.stderr


def test_missing_weights_are_said_before_training(tmp_path):
    missing = f"--config.evaluation.weights={tmp_path / 'none.pth'}"
    chosen = comparison.load(write(tmp_path, TWO), ["--config.evaluation.learned=efficientnet_lite0", missing])
    with pytest.raises(UserError, match=r"none\.pth"):
        comparison.advance(chosen, tmp_path / "work", lambda config, workdir: pytest.fail("trained"), QUIET)


def test_points_may_be_seconds(tmp_path):
    """Of a machine whose rate changes: each turn ends near the point, and is not made again."""
    every, rates, ends = 10, itertools.chain((50.0, 100.0), itertools.repeat(80.0)), []

    def train(config, workdir):
        file, rate = workdir / "timing.jsonl", next(rates)
        done = comparison._logged_step(workdir)
        with file.open("a") as log:
            # A run that was stopped had logged these, and saved none of them.
            for step in range(done + every, config.steps + 1 + 2 * every * (not ends), every):
                log.write(json.dumps({"step": step, "steps_per_second": rate}) + "\n")
        if ends:
            (workdir / "checkpoints" / str(config.steps)).mkdir(parents=True)
        ends.append(config.steps)

    config = tiny.tiny_config(f"log_every={every}")
    member = comparison.Member("a", 0, config, tmp_path)
    for seconds in (4, 4, 10):
        step = comparison._train_to_second(train, member, seconds)
        assert (tmp_path / "checkpoints" / str(step)).is_dir()
        assert comparison.seconds_of(tmp_path)(step) == pytest.approx(seconds, rel=0.03)
    assert ends == sorted(set(ends)) and len(ends) <= 7

    with pytest.raises(UserError, match="does not tell how long"):
        comparison._train_to_second(lambda config, workdir: None, member, 20)


def test_the_papers_figures_stand_beside_its_settings():
    config = command_line.load("sr3_faces_16_128")
    setting = published.setting_of(config)
    assert published.figures_of(setting, config.objective)[0] == 24.63
    for changes, psnr in (({"p": 0.0}, 25.04), ({"name": "standard"}, 23.85), ({"p": None}, 23.85)):
        with config.unlocked():
            config.objective = keys.defaults().objective.to_dict() | changes
        assert published.figures_of(setting, config.objective)[0] == psnr
    config.objective.noise = "fresh"
    assert published.figures_of(setting, config.objective) is None
    assert published.setting_of(tiny.tiny_config()) is None


def rows_of(values, steps=(1, 2, 4)):
    return [
        {"psnr": [value], "step": point, "seconds": 2.0 * point} for point, value in zip(steps, values, strict=True)
    ]


def test_where_a_curve_reaches_a_value():
    rows = rows_of((10.0, 20.0, 22.0))
    assert verdicts.reached(rows, "psnr", 15.0, "step") == 1.5
    assert verdicts.reached(rows, "psnr", 21.0, "seconds") == 6.0
    assert verdicts.reached(rows, "psnr", 9.0, "step") == 1
    assert verdicts.reached(rows, "psnr", 23.0, "step") is None


def test_speed_is_the_share_of_the_first_ones_steps_and_seconds():
    rows = []
    for name, seed, values in (
        ("a", 0, (10, 20, 22)),
        ("b", 0, (12, 24, 26)),
        ("a", 1, (10, 20, 22)),
        ("b", 1, (1, 2, 3)),
    ):
        about = {"variant": name, "seed": seed, "sampler": "ddim", "steps": 1}
        rows += [row | about for row in rows_of(values)]
    record = {"variants": {"a": {}, "b": {}}, "seeds": [0, 1], "points": [1, 2, 4], "rows": rows}
    share = (1 + 10 / 12) / 4
    for clock in ("step", "seconds"):
        assert verdicts.speed_up(record, "b", "psnr", clock, "ddim", 1) == [pytest.approx(share), None]


def test_differences_have_the_interval_of_their_pictures():
    rng = np.random.default_rng(0)
    base = rng.standard_normal(100)
    rows = [
        {"variant": name, "point": 4, "sampler": "ddim", "steps": 1, "psnr": (base + shift).tolist()}
        for name, shift in (("a", 0), ("b", 0.5 + 0.1 * rng.standard_normal(100)))
    ]
    record = {"variants": {"a": {}, "b": {}}, "points": [4], "rows": rows}
    mean, low, high = verdicts.difference(record, "b", "psnr", "ddim", 1)
    assert low < mean < high and abs(mean - 0.5) < 0.05 and 0.02 < high - low < 0.06


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        ({"a": {"objective.q": 1}}, "did you mean"),
        ({"a/b": {}}, "cannot be 'a/b'"),
        ({}, "with something in it"),
        ({"a": {"objective.p": -1.0}}, "variant a: objective.p"),
        ({"a": {"checkpoint.directory": "x"}}, "checkpoint.directory"),
    ],
)
def test_mistakes(tmp_path, variants, reason):
    with pytest.raises(UserError, match=reason):
        comparison.load(write(tmp_path, variants), [])
    with pytest.raises(UserError, match="get_comparison"):
        comparison.load("quickstart", [])
