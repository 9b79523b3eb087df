"""`python -m zswarm` is the command `zswarm`."""

from zswarm.cli.main import main

main()
