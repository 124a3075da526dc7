"""``onnxq``, and ``python -m onnxq``."""

import os
import signal


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly while its modules are imported, too."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # jobs in the background may ignore it
        # An exception would come out of some modules as another one.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from onnxq.cli import main as run

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
