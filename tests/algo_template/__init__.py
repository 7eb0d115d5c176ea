"""Tests of the Auto3DSeg template."""
