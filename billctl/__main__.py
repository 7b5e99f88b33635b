"""`python -m billctl`, or `.venv/bin/billctl`."""

from billctl.app import main

if __name__ == "__main__":
    main()
