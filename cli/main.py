"""The ``onnxq`` group, and how errors leave it: one line and an exit code."""

import os
import signal
import sys
import threading
from typing import Any, NoReturn

import click

import onnxq
from onnxq.cli.options import Command
from onnxq.errors import OnnxqError

# What ends a program from outside; the second comes of a terminal that is closed, on POSIX.
ENDING = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


class Group(click.Group):
    """A group that turns every failure into one line on stderr and a documented exit code."""

    command_class = Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command. Exit codes: 0 done, 1 gate failed, 2 usage, 3 bad input, 123 our fault."""
        kwargs["standalone_mode"] = False
        code: Any
        if threading.current_thread() is threading.main_thread():  # others may set no handler
            for number in ENDING:
                if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
                    signal.signal(number, _terminate)
        try:
            code = super().main(*args, **kwargs)
        except SystemExit as leave:
            # click and rich leave with 1, which means the gate here, if nobody reads stdout.
            code = 141 if leave.code == 1 else leave.code
        except click.exceptions.Exit as leave:
            code = leave.exit_code
        except click.ClickException as error:
            _complain(f"{error.format_message()} (see onnxq --help)")
            code = 2
        except OnnxqError as error:
            _complain(str(error))
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            _complain("interrupted")
            code = 130
        except OSError as error:
            _complain(f"{error.filename or 'a file or stdout'}: {error.strerror or error}")
            code = 3
        except MemoryError:
            _complain("out of memory: use fewer or smaller calibration images")
            code = 3
        except Exception as error:
            if os.environ.get("ONNXQ_TRACEBACK"):
                raise
            _complain(
                f"internal error, please report it: {type(error).__name__}: {error} "
                "(ONNXQ_TRACEBACK=1 shows where)"
            )
            code = 123
        sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, _: Any) -> NoReturn:
    """End as at a failure, which puts things back; once begun, that is not interrupted."""
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _complain(text: str) -> None:
    click.echo("onnxq: " + " ".join(text.split()), err=True)


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(onnxq.__version__, prog_name="onnxq")
@click.pass_context
def main(context: click.Context) -> None:
    """Make ONNX vision models small and fast, without retraining and without labels.

    Exit codes: 0 done; 1 a --max-drop gate failed, or --min-sqnr was missed (the file is written
    all the same); 2 wrong usage; 3 the input cannot be used; 123 a bug; 130 stopped by hand, 143 by
    SIGTERM, 129 by SIGHUP; 141 nobody reads stdout.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


from onnxq.cli import commands, compare  # noqa: E402, F401  (registers the commands on ``main``)
