"""`python -m ddp_helpers`."""

import sys

from ddp_helpers.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
