"""`python -m bench`: measure the data plane and write docs/performance.md."""

from bench.dataplane import main

main()
