"""`python -m suite`."""

import signal

# While the modules load, Ctrl-C just ends us: a traceback would tell nobody anything.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from suite.commands import main  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main()
