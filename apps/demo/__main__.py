"""`python -m maskimg_apps.demo` is `maskimg demo`."""

import sys

from maskimg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
