"""What became of a person's pictures, told while they are done and at the end."""

import sys

from rich.console import Console
from rich.progress import Progress

from dream_jax.inference.jobs import Job

# What is done with pictures, and what they then are.
ENLARGING, RESTORING = ("enlarging", "enlarged"), ("restoring", "restored")


class Report:
    """What became of the pictures, and the bar that shows it meanwhile.

    done: results written; failures: {picture: why}; notes: what else is to be told, in order.
    """

    def __init__(self, bar: Progress, total: int, words: tuple[str, str] = ENLARGING):
        self.done, self.failures, self.notes = 0, {}, {}
        self.doing, self.was = words
        self._bar, self._task = bar, bar.add_task(self.doing, total=total)
        self._pixels = self._seconds = 0.0

    def expect(self, more: float) -> None:
        """Counts further results, which a picture's pages are."""
        task = self._bar.tasks[self._task]
        self._bar.update(self._task, total=task.total + more)

    def say(self, description: str) -> None:
        self._bar.update(self._task, description=description)

    def advance(self, count: float) -> None:
        self._bar.advance(self._task, count)

    @property
    def completed(self) -> float:
        return self._bar.tasks[self._task].completed

    def go_back(self, completed: float) -> None:
        """Takes back what was shown of results that were under way: they are counted when they are done."""
        self._bar.update(self._task, completed=completed)

    def drawn(self, pixels: int, seconds: float) -> None:
        self._pixels, self._seconds = self._pixels + pixels, self._seconds + seconds
        self.say(f"{self.doing}, {self._pixels / self._seconds / 1e6:.2g} Mpixel/s")

    def written(self, notes: list[str]) -> None:
        self.done += 1
        for note in notes:
            self.note(note)

    def note(self, note: str) -> None:
        """Tells something at the end, once."""
        self.notes[note] = None

    def failed(self, job: Job, reason, count: int = 1) -> None:
        """Counts `count` results of a picture as failed."""
        self.failures[job.picture] = str(reason)
        self.advance(count)

    def tell(self, console: Console, pictures: int, what: str) -> int:
        """Says what was done, failures on stderr; returns the exit status."""
        for note in self.notes:
            print(note, file=sys.stderr)
        said = f"{self.done} {self.was} {what}"
        if not self.failures:
            console.print(said, markup=False)
            return 0
        print(f"error: {len(self.failures)} of {pictures} pictures failed; {said}", file=sys.stderr)
        for reason in self.failures.values():
            print(f"  {reason}", file=sys.stderr)
        return 1
