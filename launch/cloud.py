"""What gpu_vm.py and tpu_vm.py share: machines made, used and deleted through Google Cloud's own command line, gcloud.

It must be installed, and logged in; no secret passes through here. Only files that git tracks are copied.
"""

import argparse
import contextlib
import functools
import random
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUCKET_PACKAGES = "gcsfs", "google-cloud-storage", "google-cloud-storage-control"
# Seconds before a machine that could not be had is asked for again, doubled each time, and their limit.
PAUSE, LONGEST_PAUSE = 30.0, 900.0
# Seconds between looks at whether the other machines of a run are still there.
LOOK = 60.0

# On every host, in the home folder. A run that goes on is left alone.
START = """set -e
mkdir -p ~/dream_jax && cd ~/dream_jax
if [ -e run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; then echo "it runs already"; exit 0; fi
tar -xzf ~/dream_jax.tar.gz
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv -q --allow-existing --python 3.12 .venv
uv pip install -q -p .venv -r requirements.txt {packages}
rm -f run.status
{environment} nohup setsid bash -c {run} > run.log 2>&1 < /dev/null &
echo $! > run.pid"""
RUN = ".venv/bin/python launch/local.py --restarts {restarts} -- {command}; echo $? > run.status"
# On the first host: what the run says, until it has ended.
FOLLOW = """cd ~/dream_jax
tail -n +1 -F run.log & tail=$!
while [ ! -e run.status ] && kill -0 "$(cat run.pid)" 2>/dev/null; do sleep 2; done
sleep 2; kill "$tail" """
STATUS = "cat ~/dream_jax/run.status"


class Machine(NamedTuple):
    """A machine's commands of gcloud, each a list of arguments; a TPU slice is one machine with several hosts."""

    name: str
    create: list
    describe: list  # prints the state
    alive: tuple  # states in which it can be used
    revive: dict  # {state: commands that bring it back}
    copy: list  # to be followed by file and NAME:file
    shell: list  # on all hosts; to be followed by --command=...
    shell_first: list  # on the first host
    delete: list
    environment: dict  # of the run


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("run", "follow", "delete"))
    parser.add_argument("--name", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default: that of gcloud")
    parser.add_argument("--on_demand", action="store_true", help="dearer machines that are not pre-empted")
    parser.add_argument("--restarts", type=int, default=5, metavar="K", help="in a row, of what fails")
    parser.add_argument("--delete", action="store_true", help="run, follow: delete the machines when the run has ended")
    parser.add_argument("--dry_run", action="store_true", help="print the commands instead")
    parser.epilog = "After --: the run, what would follow `python -m dream_jax`."


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, and as `command` what comes after --."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.command = arguments[end + 1 :]
    return options


def main(parser, options, machines: list[Machine], packages: list[str]) -> int:
    """Does what the options say; returns the exit status, of the run where it has ended."""
    call = functools.partial(_call, dry_run=options.dry_run)
    if options.action == "delete":
        return max([call(machine.delete) for machine in machines])
    if options.action == "run":
        _check(parser, options)
    try:
        status = _run(options, machines, packages, call)
    except KeyboardInterrupt:
        _tell("the run goes on; to see it again: " + _again("follow"))
        status = 130
    except FileNotFoundError as error:
        parser.error(
            f"{error.filename} is not on the PATH; install Google Cloud's command line and `gcloud auth login`"
        )
    if options.dry_run or (options.delete and status != 130):
        if not options.dry_run:
            _keep_log(machines[0], options.name)
        if options.delete:
            for machine in machines:
                call(machine.delete)
    else:
        names = ", ".join(machine.name for machine in machines)
        _tell(f"{names}: kept, and costs money until it is deleted: {_again('delete')}")
    return status


def _again(action):
    """The command line of this program with another action, without the run's command."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--delete"]
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return shlex.join(
        ["python", sys.argv[0], *(action if argument in ("run", "follow") else argument for argument in arguments)]
    )


def _check(parser, options):
    if options.command[:1] != ["train"]:
        parser.error("after -- comes the run: train --config ... --workdir ...")
    bucket = any(argument.startswith("--config.checkpoint.directory=gs://") for argument in options.command)
    if not bucket and (options.delete or not options.on_demand):
        parser.error(
            "the machine and its disk will be lost: add --config.checkpoint.directory=gs://BUCKET/RUN to the run, or "
            "take --on_demand without --delete"
        )
    tracked = {str(path) for path in tracked_files()}
    for before, argument in zip(options.command, options.command[1:], strict=False):
        if before == "--config" and not {argument, f"configs/{argument}.py"} & tracked:
            parser.error(f"--config {argument}: not a file that git tracks here, so it would not be copied; git add it")


def _run(options, machines, packages, call):
    attempt = 0
    while True:
        if options.action == "run":
            up = all(_bring_up(machine, call, options.dry_run) for machine in machines)
            if not (up and _start_all(options, machines, packages, call)):
                attempt += 1
                if attempt > options.restarts:
                    _tell("given up")
                    return 1
                pause = min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
                _tell(f"attempt {attempt} of {options.restarts} to start again in {pause:.0f} s")
                time.sleep(pause)
                continue
        attempt = 0
        _follow(machines, call, options.dry_run)
        if options.dry_run:
            return 0
        status = (_output([*machines[0].shell_first, f"--command={STATUS}"]) or "").strip()
        if status.isdecimal():
            _tell(f"the run has ended with status {status}")
            return int(status)
        states = {machine.name: _state(machine) or "gone" for machine in machines}
        listed = ", ".join(f"{name} {state}" for name, state in states.items())
        _tell(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: the run is out of sight ({listed})")
        if options.action == "follow" and states[machines[0].name] not in machines[0].alive:
            _tell("`run` with the same options makes the machines anew, and the run goes on from its newest checkpoint")
            return 1
        time.sleep(PAUSE / 3)


def _follow(machines, call, dry_run):
    """Shows what the run says on its first host, until it has ended or one of the machines is lost."""
    command = [*machines[0].shell_first, f"--command={FOLLOW}"]
    if dry_run:
        call(command)
        return
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as shown:
        while shown.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                shown.wait(LOOK)
            # Losing the first one ends the connection.
            if any(_state(machine) not in machine.alive for machine in machines[1:]):
                shown.terminate()


def _start_all(options, machines, packages, call) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        archive = pack(Path(folder) / "dream_jax.tar.gz")
        return all(_start(machine, archive, options, packages, call) for machine in machines)


def _bring_up(machine, call, dry_run) -> bool:
    state = None if dry_run else _state(machine)
    if state is None:
        return call(machine.create) == 0
    if state in machine.alive:
        return True
    _tell(f"{machine.name} is {state}" + ("; it is brought back" if state in machine.revive else ""))
    commands = machine.revive.get(state)
    return bool(commands) and all(call(command) == 0 for command in commands)


def _state(machine) -> str | None:
    """What gcloud says of it; None where there is none."""
    state = _output(machine.describe)
    return None if state is None else state.strip()


def _start(machine, archive, options, packages, call) -> bool:
    run = RUN.format(restarts=options.restarts, command=shlex.join(options.command))
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in machine.environment.items())
    start = START.format(packages=shlex.join(packages), environment=environment, run=shlex.quote(run))
    copied = call([*machine.copy, str(archive), f"{machine.name}:dream_jax.tar.gz"])
    return copied == 0 and call([*machine.shell, f"--command={start}"]) == 0


def tracked_files() -> list[Path]:
    """The files of this folder that git tracks: no runs, no data, nothing that is not meant to leave."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if listed.returncode:
        raise SystemExit(f"{ROOT}: not a git checkout, so it cannot be told which files are the program's")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pack(archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for path in tracked_files():
            tar.add(ROOT / path, arcname=str(path))
    return archive


def _keep_log(machine, name):
    log = _output([*machine.shell_first, "--command=cat ~/dream_jax/run.log"])
    if log is not None:
        path = Path(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.log")
        path.write_text(log)
        _tell(f"what the run said is in {path}")


def _call(command, dry_run) -> int:
    if dry_run:
        print(shlex.join(command))
        return 0
    return subprocess.run(command, stdin=subprocess.DEVNULL).returncode


def _output(command) -> str | None:
    """What a command prints; None where it fails, as describing what is not there does."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return None if done.returncode else done.stdout


def _tell(message):
    print(f"launch: {message}", file=sys.stderr, flush=True)
