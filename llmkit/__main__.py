"""`llmkit` and `python -m llmkit`: the command line, which Ctrl-C ends at once in every phase.

Nothing heavy is imported here: an interruption while the commands are imported must not end in a traceback.
"""

import os
import signal
import sys
from typing import NoReturn

__all__ = ["main"]

EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        from llmkit.cli.main import run_command

        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        # The interpreter would wait for a thread in the middle of an import, which cannot be stopped and may take 15 s.
        # Sessions are closed by now.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
