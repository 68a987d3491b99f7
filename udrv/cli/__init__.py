"""The command `udrv`: what there is, what a controller says of itself, blocks in and out.

`udrv.cli.main` is the entry point; each other module holds the commands of one subject. Modules of
the SDK are imported inside of the commands: `udrv list` and `udrv bind` need no numpy, and start
without it.
"""
