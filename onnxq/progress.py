"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """What is called as work is done."""

    def __call__(self, stage: str, advance: int, total: int | None, note: str = "", /) -> None:
        """Show progress.

        Args:
            stage: What is done.
            advance: Samples, or steps, done since the last call.
            total: How many there are, if that is known.
            note: How well it goes; what was said before stays if it is empty.
        """


def silent(stage: str, advance: int, total: int | None, note: str = "") -> None:
    """Show nothing."""
