"""The launchers of cloud machines and clusters, with programs that stand for gcloud and Slurm's."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import tiny

BUCKET = "--config.checkpoint.directory=gs://bucket/run"
RUN = "train", "--config", "configs/quickstart.py", "--workdir", "runs/a name"

# Machines are files; what is asked is written down. The run on them ends when it was followed FOLLOWS times.
GCLOUD = """#!{python}
import json, os, pathlib, sys, time
arguments, here = sys.argv[1:], pathlib.Path(os.environ["FAKE"])
with open(here / "asked", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
verb = next(a for a in arguments if a in ("create", "describe", "delete", "start", "ssh", "scp"))
name = arguments[arguments.index(verb) + 1]
machine, command = here / name, arguments[-1]
if verb == "create":
    if (here / "full").exists():
        (here / "full").unlink()
        sys.exit("no capacity")
    machine.write_text(os.environ["ALIVE"])
elif verb == "describe":
    print(machine.read_text()) if machine.exists() else sys.exit(1)
elif verb == "delete":
    machine.unlink()
elif verb == "ssh" and "tail" in command:
    count = len(list(here.glob("followed-*")))
    (here / f"followed-{{count}}").touch()
    if os.environ["FATE"] == "wait":
        time.sleep(60)
    if count + 1 < int(os.environ["FOLLOWS"]):
        machine.unlink() if os.environ["FATE"] == "gone" else machine.write_text(os.environ["FATE"])
        sys.exit(255)
elif verb == "ssh" and command.endswith("run.status"):
    print(os.environ["ENDS"]) if machine.exists() and machine.read_text() == os.environ["ALIVE"] else sys.exit(255)
elif verb == "ssh" and command.endswith("run.log"):
    print("what the run said")
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """`launch(launcher, *arguments, **facts) -> (done, what was asked of gcloud)`"""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gcloud").write_text(GCLOUD.format(python=sys.executable))
    (programs / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "machines").mkdir()

    def launch(launcher, *arguments, background=False, **facts):
        alive = "READY" if launcher == "tpu_vm" else "RUNNING"
        facts = {
            "FAKE": str(tmp_path / "machines"),
            "ALIVE": alive,
            "FOLLOWS": "1",
            "FATE": "gone",
            "ENDS": "0",
        } | facts
        # The pauses are for real machines.
        script = f"import sys; sys.path.insert(0, {str(tiny.ROOT / 'launch')!r}); sys.argv[0] = '{launcher}.py'\n"
        script += f"import cloud, {launcher}; cloud.PAUSE = cloud.LOOK = 0.1; sys.exit({launcher}.main())"
        command = [sys.executable, "-c", script, *arguments]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | facts,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if background:
            return process
        said, _ = process.communicate(timeout=300)
        asked = tmp_path / "machines" / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        asked.unlink(missing_ok=True)
        return process.returncode, said, [json.loads(line) for line in lines]

    launch.folder = tmp_path / "machines"
    return launch


def verbs(asked):
    known = "create", "describe", "delete", "start", "scp", "ssh"
    found = [next(word for word in arguments if word in known) for arguments in asked]
    return [verb for verb in found if verb != "describe"]


@pytest.mark.parametrize(("launcher", "fate"), [("gpu_vm", "gone"), ("tpu_vm", "PREEMPTED"), ("tpu_vm", "gone")])
def test_a_pre_empted_run_goes_on_on_a_new_machine_and_is_deleted_when_asked(launcher, fate, cloud):
    arguments = "run", "--name", "r", "--zone", "z", "--delete", "--", *RUN, BUCKET
    status, said, asked = cloud(launcher, *arguments, FOLLOWS="2", FATE=fate)
    assert status == 0, said
    again = ["delete"] if fate == "PREEMPTED" else []
    once = ["create", "scp", "ssh", "ssh", "ssh"]
    assert verbs(asked) == [*once, *again, *once, "ssh", "delete"], said
    assert ("r PREEMPTED" if fate == "PREEMPTED" else "r gone") in said and "ended with status 0" in said
    (log,) = cloud.folder.parent.glob("r-*.log")
    assert log.read_text() == "what the run said\n"
    assert not (cloud.folder / "r").exists()


@pytest.mark.parametrize("launcher", ["gpu_vm", "tpu_vm"])
def test_a_machine_is_kept_unless_deleting_is_asked_for(launcher, cloud):
    status, said, asked = cloud(launcher, "run", "--name", "r", "--zone", "z", "--", *RUN, BUCKET, ENDS="2")
    assert status == 2 and "delete" not in verbs(asked)
    kept = [line for line in said.splitlines() if "costs money" in line]
    assert len(kept) == 1 and "delete --name r --zone z" in kept[0]
    status, _, asked = cloud(launcher, "delete", "--name", "r", "--zone", "z")
    assert status == 0 and verbs(asked) == ["delete"]


def test_what_cannot_be_had_is_asked_for_again_a_few_times(cloud):
    (cloud.folder / "full").touch()
    status, said, asked = cloud("gpu_vm", "run", "--name", "r", "--zone", "z", "--", *RUN, BUCKET)
    assert status == 0 and verbs(asked)[:3] == ["create", "create", "scp"]
    assert "attempt 1 of 5" in said


def test_one_of_several_machines_that_is_lost_is_made_again(cloud):
    arguments = "run", "--name", "r", "--zone", "z", "--hosts", "2", "--delete", "--", *RUN, BUCKET
    process = cloud("gpu_vm", *arguments, background=True, FATE="wait", ENDS="")
    deadline = time.monotonic() + 30
    while not (cloud.folder / "followed-0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (cloud.folder / "r-1").unlink()
    while (cloud.folder / "asked").read_text().count('"create"') < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=300)
    asked = [json.loads(line) for line in (cloud.folder / "asked").read_text().splitlines()]
    assert [line[3] for line in asked if "create" in line] == ["r-0", "r-1", "r-1"]


def test_ctrl_c_leaves_the_run_going(cloud):
    process = cloud(
        "tpu_vm", "run", "--name", "r", "--zone", "z", "--delete", "--", *RUN, BUCKET, background=True, FATE="wait"
    )
    deadline = time.monotonic() + 30
    while not (cloud.folder / "followed-0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and (cloud.folder / "r").exists()
    assert "the run goes on" in said and "follow --name r --zone z" in said and "costs money" in said


@pytest.mark.parametrize("launcher", ["gpu_vm", "tpu_vm"])
def test_a_dry_run_asks_nothing_and_prints_what_shells_understand(launcher, cloud):
    status, said, asked = cloud(
        launcher, "run", "--name", "r", "--zone", "z", "--delete", "--dry_run", "--", *RUN, BUCKET
    )
    assert status == 0 and not asked
    words = shlex.split(said)
    steps = [word for word in words if word in ("create", "scp", "ssh", "delete")]
    assert steps == ["create", "scp", "ssh", "ssh", "delete"]
    assert "--spot" in words or "--provisioning-model=SPOT" in words
    start = next(word for word in words if "nohup" in word).removeprefix("--command=")
    # Quoted for three shells, the run arrives as it was given.
    (line,) = (line for line in start.splitlines() if "nohup" in line)
    parts = shlex.split(line)
    inner = parts[parts.index("-c") + 1]
    assert shlex.split(inner.partition(";")[0])[-len(RUN) - 1 :] == [*RUN, BUCKET]
    assert subprocess.run(["bash", "-n", "-c", start]).returncode == 0
    assert subprocess.run(["bash", "-n", "-c", inner]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--", *RUN), "the machine and its disk will be lost"),
        (("--on_demand", "--delete", "--", *RUN), "the machine and its disk will be lost"),
        (("--", "evaluate"), "after -- comes the run"),
        (("--", "train", "--config", "secret.py", BUCKET), "not a file that git tracks"),
    ],
)
def test_mistakes_ask_nothing(arguments, reason, cloud):
    status, said, asked = cloud("gpu_vm", "run", "--name", "r", "--zone", "z", *arguments)
    assert status == 2 and reason in " ".join(said.split()) and not asked


def test_only_tracked_files_are_packed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tiny.ROOT / "launch"))
    import cloud

    root = tmp_path / "checkout"
    (root / "runs").mkdir(parents=True)
    for name in ("kept.py", "secret.json", "runs/metrics.jsonl"):
        (root / name).write_text("x")
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "add", "kept.py"], cwd=root, check=True)
    monkeypatch.setattr(cloud, "ROOT", root)
    with tarfile.open(cloud.pack(tmp_path / "a.tar.gz")) as tar:
        assert tar.getnames() == ["kept.py"]


# Slurm's programs for two tasks on this machine.
SRUN = """#!/bin/bash
shift
for k in 0 1; do SLURM_PROCID=$k "$@" & pids+=($!); done
worst=0
for pid in "${pids[@]}"; do wait "$pid"; s=$?; [ $s -gt $worst ] && worst=$s; done
exit $worst
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; echo another; else echo "$@" >> "$FAKE/requeued"; fi
"""
SBATCH = """#!/bin/bash
cp "$1" "$FAKE/submitted"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"FAKE": tmp_path, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": 2, "SLURM_JOB_ID": 7}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*arguments):
    command = [sys.executable, tiny.ROOT / "launch" / "slurm.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_job_script_asks_for_what_was_said(slurm):
    done = submit("--nodes", 2, "--gpus", 4, "--per_gpu", "--sbatch=--account=a b", "--dry_run", "--", *RUN)
    assert done.returncode == 0 and not (slurm / "submitted").exists()
    lines = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in done.stdout.splitlines() if "#SBATCH" in line]
    wanted = "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--signal=TERM@300", "--account=a b"
    assert set(wanted) <= set(lines)
    (run,) = (line for line in done.stdout.splitlines() if "--inside" in line)
    assert shlex.split(run)[-len(RUN) :] == list(RUN)
    assert submit("--", *RUN).returncode == 0
    assert subprocess.run(["bash", "-n", slurm / "submitted"]).returncode == 0
    assert (slurm / "logs").is_dir()


@pytest.mark.parametrize(("status", "requeued"), [(143, True), (0, False), (2, False)])
def test_a_job_that_saved_before_its_limit_is_queued_again(status, requeued, slurm):
    script = submit("--dry_run", "--", *RUN).stdout
    (slurm / "srun").write_text(f"#!/bin/bash\nexit {status}\n")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    assert (slurm / "requeued").exists() == requeued
    if requeued:
        assert (slurm / "requeued").read_text() == "requeue 7\n"


def test_a_cancelled_job_is_not_queued_again(slurm):
    script = submit("--dry_run", "--", *RUN).stdout
    (slurm / "srun").write_text("#!/bin/bash\ntouch $FAKE/runs; sleep 1; exit 143\n")
    job = subprocess.Popen(["bash", "-c", script])
    while not (slurm / "runs").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 143 and not (slurm / "requeued").exists()


def test_the_job_trains_on_its_tasks_together(slurm):
    changes = *tiny.TINY, "image_size=16", "task.name=unconditional", "task.residual=False", "objective.kind=eps"
    # No step: what the tasks compute together is the first state and the evaluation.
    changes += "objective.p=None", "steps=0"
    where = "--config", tiny.ROOT / "configs" / "base.py", "--workdir", slurm / "run"
    script = submit("--gpus", 0, "--dry_run", "--", "train", *where, *(f"--config.{c}" for c in changes)).stdout
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout and (slurm / "run" / "evaluation.json").exists()
