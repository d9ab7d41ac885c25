"""`python -m modeling_act COMMAND`; the commands are in `cli`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
