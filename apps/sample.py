"""Draw many pictures into a folder: `python apps/sample.py` is `maskimg sample`, for those who start scripts.

python apps/sample.py --label rocket --count 16 --out out/rockets
"""

import sys

from maskimg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["sample", *sys.argv[1:]]))
