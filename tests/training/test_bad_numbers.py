import json

import numpy as np
import pytest
import tiny

from dream_jax.training import bad_numbers

NAN = float("nan")


def settings(*changes):
    return tiny.tiny_config(*(f"watch.{change}" for change in changes)).watch


def metrics_of(rng, scale=1.0, batch=16, **changes):
    """A step's metrics as the noise level makes them: a loss from 1 at the cleanest levels to 0.01 at the noisiest."""
    level = rng.random(batch)
    losses = scale * np.exp(-4.6 * level + 0.4 * rng.standard_normal(batch))
    quartile = np.eye(4)[(4 * level).astype(int)]
    metrics = {"loss": losses.mean(), "gradient_norm": 1.0, "update_norm": 1.0}
    metrics |= {"level_losses": losses @ quartile, "level_counts": quartile.sum(0)}
    return {name: np.float32(value) for name, value in (metrics | changes).items()}


def examine(window, last, config, stats=None, rectifies=lambda step: True):
    return bad_numbers.examine(stats or bad_numbers.start(), window, last, rectifies, config)


def test_usual_losses_are_no_rise_however_few_examples_a_step_has():
    for batch in (1, 2, 16):
        rng = np.random.default_rng(batch)
        window = [metrics_of(rng, scale=0.1 + np.exp(-step / 100), batch=batch) for step in range(6000)]
        losses = [float(metrics["loss"]) for metrics in window[500:]]
        # The plain loss is no guide: single steps are many times the mean.
        assert max(losses) > (8 if batch == 1 else 1.7) * np.mean(losses)
        assert examine(window, 6000, settings()) == examine(window, 6000, settings())._replace(
            action="go on", reasons=[]
        )


@pytest.mark.parametrize(("batch", "factor"), [(16, 2), (16, 20), (4, 5), (1, 20)])
def test_a_rise_is_found_soon_and_since_when(batch, factor):
    rng = np.random.default_rng(0)
    window = [metrics_of(rng, scale=factor if step > 900 else 1, batch=batch) for step in range(1, 1001)]
    verdict = examine(window, 1000, settings("rise=rollback"))
    assert verdict.action == "rollback"
    # The step before the first that stands out is left out as well.
    assert verdict.steps == list(range(verdict.steps[0], verdict.steps[-1] + 1))
    assert 890 <= verdict.steps[0] <= 905 and verdict.steps[-1] <= 970
    assert f"step {verdict.steps[-1]}: the loss has risen since step {verdict.steps[0] + 1}" in verdict.reasons[0]


def test_one_step_that_stands_out_is_no_rise():
    rng = np.random.default_rng(0)
    window = [metrics_of(rng, scale=1e6 if step % 50 == 0 else 1) for step in range(1000)]
    assert examine(window, 1000, settings("rise=rollback")).action == "go on"


def test_a_rise_is_said_once_or_not():
    rng = np.random.default_rng(0)
    window = [metrics_of(rng, scale=5 if step > 500 else 1) for step in range(1, 2001)]
    warned = examine(window, 2000, settings())
    assert warned.action == "go on" and len(warned.reasons) == 1 and not warned.steps
    assert not examine(window, 2000, settings("rise=off")).reasons


def test_the_statistics_begin_anew_where_the_objective_changes():
    rng = np.random.default_rng(0)
    window = [metrics_of(rng, scale=5 if step > 500 else 1) for step in range(1, 1001)]
    assert not examine(window, 1000, settings(), rectifies=lambda step: step > 500).reasons


def test_the_statistics_do_not_depend_on_windows_or_on_being_saved():
    rng = np.random.default_rng(0)
    window = [metrics_of(rng, scale=3 if step > 250 else 1) for step in range(1, 301)]
    window[100] = None
    whole = examine(window, 300, settings())
    stats, reasons = bad_numbers.start(), []
    for last in range(7, 308, 7):
        part = examine(window[last - 7 : last], min(last, 300), settings(), json.loads(json.dumps(stats)))
        stats, reasons = part.stats, reasons + part.reasons
    assert (stats, reasons) == (whole.stats, whole.reasons) and reasons


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "update_norm"])
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_what_is_not_finite_is_named_and_left_out_of_the_statistics(name, policy):
    rng = np.random.default_rng(0)
    window = [metrics_of(rng) for _ in range(10)]
    bad = [*window[:4], window[4] | {name: np.float32(NAN)}, *window[5:]]
    left_out = [*window[:4], None, *window[5:]]
    verdict = examine(bad, 30, settings(f"not_finite={policy}"))
    assert verdict.action == {"skip": "go on"}.get(policy, policy)
    assert verdict.not_finite == [25] and verdict.reasons[0].startswith("step 25: ")
    assert verdict.steps == ([25] if policy == "rollback" else [])
    if policy != "stop":
        assert verdict.stats == examine(left_out, 30, settings()).stats


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_weights_that_are_not_finite_any_more_stop_the_run(policy):
    bad = metrics_of(np.random.default_rng(0), loss=NAN)
    config = settings(f"not_finite={policy}", "limit=5")
    some = examine([bad] * 4, 4, config)
    assert some.action != "stop"
    assert examine([bad], 5, config, some.stats).action == "stop"
    # A step that is left out is none of them, and one that is finite ends the row.
    good = metrics_of(np.random.default_rng(0))
    assert examine([None, good, bad], 7, config, some.stats).action != "stop"


def test_what_is_not_finite_is_named():
    rng = np.random.default_rng(0)
    for changes, said in (
        ({"update_norm": NAN}, r"step 7: update norm nan (with loss "),
        ({"loss": NAN, "gradient_norm": np.inf}, "step 7: loss nan, gradient norm inf (with update norm 1) are not"),
    ):
        (reason, *_) = examine([metrics_of(rng, **changes)], 7, settings()).reasons
        assert reason.startswith(said) and reason.endswith("not finite, and the step not applied")
