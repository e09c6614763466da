"""Tests of ucd_ray.data."""
