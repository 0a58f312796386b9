"""Measurements to run by hand: `python -m tests.benchmarks.NAME`. Nothing here runs in the test suite."""
