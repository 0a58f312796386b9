"""The command line: `python -m trellis_core`."""
