"""Configs: one table of keys, the command line, checks, and the records of runs."""
