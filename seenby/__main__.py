"""The command: python -m seenby."""

import signal
import sys


def main() -> int:
    """Ctrl-C during the imports below, most of a short run, ends it quietly."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from seenby.command_line import main
    from seenby.machine import interrupted

    signal.signal(signal.SIGINT, interrupted)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return main()


if __name__ == "__main__":
    sys.exit(main())
