"""Tests; the packages mirror ucd_ray."""
