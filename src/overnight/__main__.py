"""`python -m overnight` is the command line."""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in {"", os.getcwd()}:
    # `-m` put the working folder there. What lies in it must not take the place of what this program imports.
    del sys.path[0]

from overnight.cli import main

if __name__ == "__main__":
    main()
