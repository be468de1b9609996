"""A process that a benchmark asks for timings, line by line."""

import json
import os
import subprocess
import sys

from benchmarks import report

OFFICIAL = report.ROOT / "benchmarks" / "official.py"


class Worker:
    """A process that prints a line of facts when it is ready, and then answers each line it is sent; all in JSON."""

    def __init__(self, command):
        self.command, self.process, self.facts = command, None, None

    def begin(self):
        """Starts the process, and waits for nothing."""
        if self.process is None:
            # So that the others find room on the same GPU.
            environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(self.command, **pipes, text=True, cwd=report.ROOT, env=environment)
            self.facts = None

    def start(self) -> dict:
        """The process's facts. Raises RuntimeError where it fails, for want of memory or otherwise."""
        self.begin()
        if self.facts is None:
            self.facts = self._answer()
        return self.facts

    def ask(self, **question):
        self.start()
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("its process ended; its own message is above")
        return json.loads(line)


def official(python: str, checkout: str, spec: dict) -> Worker:
    """The official PyTorch code, driven by official.py."""
    return Worker([python, str(OFFICIAL), "--official", str(checkout), "--spec", json.dumps(spec)])


def answer(facts: dict, reply) -> None:
    """The other side: prints the facts, then `reply(**question)` to each question until there is none."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(reply(**json.loads(line))), flush=True)
