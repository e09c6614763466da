"""Tests of ucd_ray.methods."""
