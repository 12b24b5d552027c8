"""`python -m rlft`, the same as the command `rlft`."""

from rlft.cli.main import main

main()
