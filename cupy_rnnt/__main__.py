"""``python -m cupy_rnnt``, the command line of :mod:`cupy_rnnt.cli`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
