"""`python -m gleaner` is `gleaner`."""

from gleaner.cli import main

main()
