"""``python -m ckptkit``: the command line."""

from ckptkit.cli.app import main

main()
