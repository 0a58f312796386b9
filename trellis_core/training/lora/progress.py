"""What a training run tells while it goes: step, loss and remaining time, on a terminal and in a log alike."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""
SMOOTH = 0.9
"""How much of the shown loss is that of earlier steps: single steps jump."""


class Progress:
    """A bar on a terminal; elsewhere a line now and then, the first after the first step and one at the end.

    Args:
        name: what is trained. done: steps of an earlier run. total: all steps.
    """

    def __init__(self, name: str, done: int, total: int, stream: TextIO | None = None) -> None:
        self.name, self.first, self.done, self.total = name, done, done, total
        self.stream = sys.stderr if stream is None else stream
        self.began = time.monotonic()
        self.told, self.loss = -LINE_EVERY, None
        terminal = self.stream.isatty()
        self.bar = tqdm(total=total, initial=done, desc=name, file=self.stream, leave=False) if terminal else None

    def step(self, loss: float) -> None:
        """One more step is done."""
        self.done += 1
        self.loss = loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * loss
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {self.loss:.4f}", refresh=False)
            self.bar.update()
            return
        spent = time.monotonic() - self.began
        if spent - self.told >= LINE_EVERY or self.done == self.total:
            self.told = spent
            left = spent / (self.done - self.first) * (self.total - self.done)
            line = f"{self.name}  step {self.done} of {self.total}, loss {self.loss:.4f}, {_clock(left)} left"
            print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Give the terminal's line back."""
        if self.bar is not None:
            self.bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
