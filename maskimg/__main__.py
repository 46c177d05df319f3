"""`python -m maskimg` is the `maskimg` command."""

from maskimg.cli import main

raise SystemExit(main())
