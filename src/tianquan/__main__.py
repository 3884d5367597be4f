"""`python -m tianquan` is the command line."""

from tianquan.cli import main

main()
