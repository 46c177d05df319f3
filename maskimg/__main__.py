"""`python -m maskimg` is the `maskimg` command."""

import os
import sys


def forget_current_folder() -> None:
    """Python has put the folder where a person happens to be before its own modules: a file called `random.py` there
    would be imported in their place. It becomes the last where maskimg itself lies in it, and else it goes.
    """
    if sys.flags.safe_path:
        return
    here = sys.path.pop(0)
    if os.path.realpath(here) == os.path.dirname(os.path.dirname(os.path.realpath(__file__))):  # noqa: PTH120
        sys.path.append(here)


if __name__ == "__main__":
    forget_current_folder()

from maskimg.cli.main import main  # noqa: E402

raise SystemExit(main())
