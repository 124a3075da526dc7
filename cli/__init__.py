"""The command line: parses, delegates, prints. All of click lives here."""

from onnxq.cli.main import main

__all__ = ["main"]
