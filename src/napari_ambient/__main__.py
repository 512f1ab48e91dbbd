"""Lets ``python -m napari_ambient`` do what the command napari-ambient does."""

from napari_ambient.cli import main

main()
