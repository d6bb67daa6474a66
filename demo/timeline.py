"""Tells the story on the terminal: numbered steps with their times, and a table of them at the end."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

WIDTH = 92


@dataclass
class Step:
    """One line of the table."""

    title: str
    seconds: float = 0.0
    result: str = ""
    failed: bool = False


@dataclass
class Timeline:
    """The steps so far."""

    steps: list[Step] = field(default_factory=list)
    _colour: bool = field(default_factory=lambda: sys.stdout.isatty())

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Time a step; put what came out of it, in a few words, into the `result` of what is yielded."""
        step = Step(title)
        self.steps.append(step)
        print(self._bold(f"\n[{len(self.steps):>2}] {title}"), flush=True)
        began = time.monotonic()
        try:
            yield step
        except BaseException:
            step.failed, step.result = True, "FAILED"
            raise
        finally:
            step.seconds = time.monotonic() - began
            self.say(f"{step.seconds:.1f} s")

    def command(self, *words: str) -> None:
        """Show a command as a reader would type it."""
        self.say("$ " + " ".join(words))

    def say(self, text: str) -> None:
        """Show text below the present step."""
        print(textwrap.indent(text.rstrip(), "     "), flush=True)

    def table(self) -> str:
        """All steps with what came out and their times."""
        wide = max(len(step.title) for step in self.steps)
        rest = WIDTH - wide - 17
        rule = "-" * WIDTH
        lines = [rule]
        for number, step in enumerate(self.steps, 1):
            result = textwrap.shorten(step.result, rest, placeholder="...")
            line = f" {number:>2}  {step.title:<{wide}}  {result:<{rest}} {step.seconds:>6.1f} s"
            lines.append(self._bold(line) if step.failed else line)
        total = sum(step.seconds for step in self.steps)
        lines += [rule, f"{'together':>{WIDTH - 11}}  {total:>6.1f} s"]
        return "\n".join(lines)

    def _bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self._colour else text
