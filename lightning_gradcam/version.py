"""The version: here, where it can be read without the rest."""

__version__ = "0.1.0"
