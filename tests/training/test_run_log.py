import json
import math

from dream_jax.training.run_log import RunLog


def write(workdir, start, stop):
    log = RunLog(workdir, start)
    for step in range(start + 1, stop + 1):
        metrics = {"loss": 1 / (3 * step), "level_losses": [step / 7, math.nan], "skipped": step % 2 == 0}
        log.write(step, metrics, {"steps_per_second": 0.1 * step})
    log.close()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_hold_the_step_and_the_values(tmp_path):
    write(tmp_path, 0, 2)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert lines(tmp_path / "metrics.jsonl")[1]["loss"] == 1 / 6
    assert lines(tmp_path / "timing.jsonl")[0] == {"step": 1, "steps_per_second": 0.1}
    assert list((tmp_path / "tensorboard").glob("*tfevents*"))


def test_lines_are_on_disk_at_once(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write(1, {"loss": 1.0}, {})
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
    log.close()


def test_an_interrupted_run_leaves_the_file_of_a_straight_one(tmp_path):
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    straight.mkdir(), interrupted.mkdir()
    write(straight, 0, 9)
    # It wrote up to step 7 and a part of 8, but its last checkpoint is of step 4.
    write(interrupted, 0, 7)
    with open(interrupted / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    write(interrupted, 4, 9)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (interrupted / name).read_bytes() == (straight / name).read_bytes()


def test_a_torn_line_at_the_restored_step_is_no_record(tmp_path):
    write(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-10])
    RunLog(tmp_path, 5).close()
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_a_new_run_starts_empty_files(tmp_path):
    write(tmp_path, 0, 3)
    RunLog(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_records_of_a_run_whose_checkpoints_are_gone_are_kept(tmp_path):
    write(tmp_path, 0, 3)
    write(tmp_path, 0, 2)
    assert [line["step"] for line in lines(tmp_path / "metrics.old.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
