"""The short form of `python -m benchmarks.against_pytorch`: what it does with parts, one of them a real one."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import types

import pytest
import tiny

from benchmarks import against_pytorch, capped, ours, trace
from dream_jax.errors import UserError

# Tells its facts, and answers after as many seconds as it is asked to.
STAND_IN = """
import json, os, sys, time
print("what a library prints")
print(json.dumps({"pid": os.getpid()}), flush=True)
for line in sys.stdin:
    time.sleep(json.loads(line)["sleep"])
    print(json.dumps({"seconds": 0.5}), flush=True)
"""
HEAD = {"commit": "a"}


def part(*sleeps, code=STAND_IN, cap=60.0, **more):
    return capped.Part([sys.executable, "-S", "-c", code], cap, tuple({"sleep": sleep} for sleep in sleeps), **more)


def measure(out, *groups, head=HEAD, seconds=60.0):
    with capped.Runner(out, head, time.monotonic() + seconds, lambda: None) as runner:
        for group in groups:
            runner.measure(group)
    return capped.read(out)


def test_a_part_that_is_stopped_or_fails_keeps_its_answers_and_the_next_goes_on(tmp_path, monkeypatch):
    answers, first = [], time.monotonic()
    # Time jumps over the cap when the first answer is there.
    monkeypatch.setattr(
        capped, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * bool(answers))
    )
    fails = STAND_IN + "    sys.exit(3)\n"
    parts = {"hangs": part(0, 600), "fails": part(0, 0, code=fails), "whole": part(0, 0), "none": part(missing="x")}

    def changed():
        answers.extend(each for each in capped.read(tmp_path).values() if each["answers"])

    with capped.Runner(tmp_path, HEAD, math.inf, changed) as runner:
        for name, each in parts.items():
            runner.measure({name: each})
    found = capped.read(tmp_path)
    assert time.monotonic() - first < 300
    assert [len(found[name]["answers"]) for name in parts] == [1, 1, 2, 0]
    ends = "stopped after", "its process ended with status 3", "done", "not measured: x"
    assert all(found[name]["ended"].startswith(end) for name, end in zip(parts, ends, strict=True))
    for name in ("hangs", "fails", "whole"):
        with pytest.raises(ProcessLookupError):
            os.kill(found[name]["facts"]["pid"], 0)


def test_parts_that_take_turns_are_asked_one_after_the_other(tmp_path):
    measure(tmp_path, {"a": part(0, 0), "b": part(0, 0)})
    said = [json.loads(line) for line in (tmp_path / capped.MEASURED).read_text().splitlines()]
    assert [each["part"] for each in said if "answer" in each] == ["a", "b", "a", "b"]


def test_without_time_no_part_is_started(tmp_path):
    found = measure(tmp_path, {"a": part(0)}, seconds=capped.LEAST - 1)
    assert found["a"]["ended"] == "not measured: no time is left" and not found["a"]["facts"]


def test_a_folder_of_another_commit_is_not_gone_on_with(tmp_path):
    measure(tmp_path, {"a": part(0)})
    with pytest.raises(UserError, match="name another folder"):
        measure(tmp_path, {"a": part(0)}, head={"commit": "b"})


RUNNER = """
import json, math, pathlib, sys
from benchmarks import capped
out, *parts = json.loads(sys.argv[1])
with capped.Runner(pathlib.Path(out), {"commit": "a"}, math.inf, lambda: None) as runner:
    for name, command, questions in parts:
        runner.measure({name: capped.Part(command, 60, questions)})
"""


def test_what_was_measured_survives_a_kill_and_the_repeated_command_measures_the_rest(tmp_path):
    parts = {"first": part(0, 0), "second": part(0, 60)}
    said = json.dumps([str(tmp_path), *([name, each.command, each.questions] for name, each in parts.items())])
    process = subprocess.Popen([sys.executable, "-c", RUNNER, said], cwd=tiny.ROOT, start_new_session=True)
    until = time.monotonic() + 60
    while not (found := (tmp_path / capped.MEASURED).exists() and capped.read(tmp_path)) or not (
        found.get("second", {}).get("answers")
    ):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert found["second"]["ended"] == "cut off" and len(found["second"]["answers"]) == 1
    # Its process does not outlive it, so that a repeated command has the device to itself.
    while os.path.exists(f"/proc/{found['second']['facts']['pid']}"):
        assert time.monotonic() < until
        time.sleep(0.02)
    again = measure(tmp_path, {"first": part(0, 0)}, {"second": part(0, 0)})
    assert again["first"] == found["first"] and again["second"]["ended"] == "done"


def test_compiled_programs_come_back_whole_from_pieces_or_not_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(capped, "PIECE", 2**20)
    cache, out, back = (tmp_path / name for name in ("cache", "out", "back"))
    for folder in (cache / "jax", out, back):
        folder.mkdir(parents=True)
    sizes = {"step": 2_000_000, "large": 4_000_000, "small": 10}
    for age, (name, size) in enumerate(sizes.items()):
        (cache / "jax" / name).write_bytes(os.urandom(size))
        os.utime(cache / "jax" / name, (age, age))
    capped.pack(cache, out)
    pieces = list(out.iterdir())
    assert len(pieces) <= capped.PIECES and all(piece.stat().st_size <= capped.PIECE for piece in pieces)
    capped.unpack(out, back)
    # The first compiled one comes first; the one that does not fit is left out.
    assert {path.name: path.read_bytes() for path in back.glob("jax/*")} == {
        name: (cache / "jax" / name).read_bytes() for name in ("step", "small")
    }
    (out / "cache.1").write_bytes(b"another")
    (tmp_path / "none").mkdir()
    capped.unpack(out, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir()) and "not whole" in capsys.readouterr().err


def test_a_program_is_needed_for_parts_that_are_measured_with_a_kept_one_alone(tmp_path):
    cold, kept = part(0, program="step"), part(0, program="step", kept=True)
    assert measure(tmp_path / "a", {"profile": kept})["profile"]["ended"] == "not measured: its program is not kept"
    assert measure(tmp_path / "b", {"step": cold}, {"profile": kept})["profile"]["ended"] == "done"
    again = measure(tmp_path / "b", {"other": part(0, program="step", kept=True)})
    assert again["other"]["ended"] == "done"


def test_parts_without_what_they_need_say_so_and_all_others_have_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    torchless = tmp_path / "torchless"
    torchless.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    torchless.chmod(0o755)
    options = [str(tmp_path / "out"), "--python", str(torchless), "--parts", "torch convolutions", "official"]
    monkeypatch.setattr(sys, "argv", ["against_pytorch", *options])
    assert against_pytorch.main() == 0
    page = (tmp_path / "out" / against_pytorch.PAGE).read_text()
    assert "| official |  | not measured: no --official |" in page
    assert "| torch convolutions |  | not measured: no " in page
    for network in ("paper", "tiny"):
        for name, (_, _, measured, times) in against_pytorch.ALL.items():
            assert against_pytorch.questions(name, measured["kind"], times, network)
    whole = sum(cap for cap, *_ in against_pytorch.PARTS.values())
    assert against_pytorch.PARTS["step"][0] < against_pytorch.LIMIT < whole and not math.isnan(whole)


def test_convolutions_are_timed_for_real():
    facts, reply = ours.convolutions({"gpu": False, "batch_size": 1})
    assert "jax" in facts["versions"]
    said = reply(side=4, inputs=2, outputs=3)
    assert set(said) == {"forward", "input", "kernel"} and all(seconds > 0 for seconds in said.values())


PROGRAM = """HloModule jit_train_step

%fused.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %m = f32[4]{0} multiply(%p, %p)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %fusion.7 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused.1, metadata={op_name="jit(s)/UNet/block/norm_1/mul"}
  %fusion.8 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused.1, metadata={op_name="transpose(jvp(UNet))/norm_1/mul"}
  %cudnn-conv.2 = (f32[4]{0}, u8[8]{0}) custom-call(%a), custom_call_target="__cudnn$convBackwardFilter"
  %fusion.9 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused.1, metadata={op_name="jit(s)/add"}
  ROOT %copy.3 = f32[4]{0} copy(%a)
}
"""


def test_kernels_are_told_by_what_the_program_says_of_them():
    known = trace.operations(PROGRAM)
    kinds = {name: trace.label(name, known) for name in ("fusion.7", "fusion.8", "cudnn-conv.2", "fusion.9", "copy.3")}
    assert kinds == {
        "fusion.7": "norm and activation",
        "fusion.8": "norm and activation, backward",
        "cudnn-conv.2": "convolutions, kernel gradients",
        "fusion.9": "optimizer, norms and the rest",
        "copy.3": "copies and transposes",
    }
    # Libraries' kernels, of which cuDNN's convolutions have "gemm" in their names too.
    assert trace.label("sm90_xmma_dgrad_implicit_gemm_bf16", known) == "convolutions"
    assert trace.label("nvjet_hsh_128x64", known) == "matrix products"
