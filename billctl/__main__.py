"""`python -m billctl`, or `.venv/bin/billctl`."""

import signal

if __name__ == "__main__":
    # Ctrl-C while we are being imported is nobody's news either.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from billctl.app import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
