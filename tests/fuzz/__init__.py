"""Random damage to every kind of file that is read, see `python -m tests.fuzz --help`."""
