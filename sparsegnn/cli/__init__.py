"""The `sparsegnn` command: info, methods, train, advise, bench, study, plot, report.

Exit codes: 0 fine, 1 a check failed (a diverged run, say) or a bug, 2 usage, bad input or a full disk, 128 + n after
signal n (130: Ctrl-C). A reader of the output that leaves is no error. Results go to stdout, everything else to stderr,
which also gets the results that stdout cannot take. With --json stdout is one strict JSON value, for an error too:
`{"error": message, "type": class}`. typer and rich come with the extra `cli`; without them only `info` works, as plain
text.
"""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sparsegnn import _console

USAGE = "the command line needs typer and rich: pip install 'sparsegnn[cli]' (only `sparsegnn info` works without)"


class Terminated(BaseException):
    """SIGTERM or SIGHUP: what is half done is undone on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's arguments) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in args, "--json" in args
    args = [a for a in args if a != "--debug"]
    with _console.command_line() as (out, error), _terminated_by_exception():
        try:
            code = _run(args)
        except _console.ReaderGone:
            return 0
        except BaseException as e:
            code, message, kind = _explain(e, error, debug)
            if as_json and not out.used:  # else stdout has its one value: the result, of a check that failed
                with suppress(_console.ReaderGone):
                    out.write(_console.json_text({"error": message, "type": kind}) + "\n")
        if out.failure:
            error.write(f"sparsegnn: stdout cannot be written: {_console.clean(out.failure)}\n")
        return 2 if out.failure and not code else code


def _run(args: list[str]) -> int:
    from sparsegnn import _native

    _native.check_isa()
    try:
        import rich  # noqa: F401
        import tqdm  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        if args[:1] != ["info"]:
            raise ValueError(USAGE) from None
        from sparsegnn.cli.info import info

        info(as_json="--json" in args)
        return 0
    command = application()(args=args, prog_name="sparsegnn", standalone_mode=False)
    if not callable(command):  # the exit code of --help
        return command or 0
    command()  # outside of typer, which has rules of its own for some exceptions
    return 0


def _explain(e: BaseException, error: _console.Stream, debug: bool) -> tuple[int, str, str]:
    """Say on stderr what went wrong; the exit code, the message and the kind of error."""
    kind = type(e).__name__
    if hasattr(e, "format_message"):  # a ClickException, of click or of the copy in typer
        shown = io.StringIO()
        e.show(file=shown)
        error.write("".join(f"{_console.clean(line)}\n" for line in shown.getvalue().splitlines()))
        return e.exit_code, " ".join(e.format_message().split()), kind
    if isinstance(e, SystemExit) and not isinstance(e.code, str):
        return int(e.code or 0), f"exit code {e.code}", kind
    code = {"CheckFailed": 1, "KeyboardInterrupt": 130, "SystemExit": 1}.get(kind, 2)
    if isinstance(e, Terminated):
        code = e.exit_code
    bug = code == 2 and not _bad_input(e)
    message = " ".join(str(e).split()) or ("interrupted" if code == 130 else kind)
    if isinstance(e, RuntimeError) and "SPARSEGNN_ISA" in message:  # without the place in C++
        message = message[message.index("SPARSEGNN_ISA") :]
    if debug or bug:  # of which the report needs the traceback
        lines = "".join(traceback.format_exception(e)).split("\n")
        error.write("\n".join(_console.clean(line) for line in lines))
    error.write(f"sparsegnn: {_console.clean(message)}\n")
    return 1 if bug else code, message, kind


def _bad_input(e: BaseException) -> bool:
    """Whether the user, rather than a bug, is what an exception comes from."""
    if isinstance(e, RuntimeError):  # of torch and of the libraries
        return any(words in str(e) for words in ("out of memory", "can't allocate memory", "SPARSEGNN_ISA"))
    return isinstance(e, (ValueError, TypeError, OSError, MemoryError, OverflowError))


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, unless the process was told to ignore them."""

    def raise_it(number, frame):
        signal.signal(number, signal.SIG_IGN)  # the first one is on its way
        _console.stopped.append(Terminated(number))
        raise _console.stopped[0]

    changed = []
    with suppress(ValueError):  # only the main thread may
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, raise_it)
                changed.append(number)
    try:
        yield
    finally:
        _console.stopped.clear()
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def application():
    """The typer application; made when it is needed, so that importing this module costs nothing."""
    import typer

    from sparsegnn.cli.advise import advise
    from sparsegnn.cli.bench import bench
    from sparsegnn.cli.info import info
    from sparsegnn.cli.methods import methods
    from sparsegnn.cli.options import with_options
    from sparsegnn.cli.plot import plot
    from sparsegnn.cli.report import report
    from sparsegnn.cli.study import study
    from sparsegnn.cli.train import train

    app = typer.Typer(
        help="Sparse graph neural networks: train them, measure them, see what this installation can do.",
        epilog="Exit codes: 0 fine, 1 a check failed, 2 usage or bad input, 130 interrupted. --debug shows tracebacks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (info, methods, train, advise, bench, study, plot, report):
        app.command()(with_options(command))
    return app
