"""The command's first steps: Ctrl-C must end it quietly from the beginning."""

import signal
import sys


def main() -> int:
    """For the console script, python -m seenby and torchrun -m seenby alike."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports, most of a short run
    from seenby.command_line import main
    from seenby.machine import on_sigint

    signal.signal(signal.SIGINT, on_sigint)
    if sys.stdout is not None:  # as it is where it was closed
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return main()


if __name__ == "__main__":
    sys.exit(main())
