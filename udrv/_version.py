"""The version, alone, so that the build can read it without the extension modules."""

__version__ = "0.1.0.dev0"
