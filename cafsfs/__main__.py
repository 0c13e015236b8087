"""``python -m cafsfs`` is ``cafsfs``."""

from cafsfs.cli import main

main()
