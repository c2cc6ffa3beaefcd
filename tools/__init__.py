"""Checks that the Makefile runs and that are no part of the library."""
