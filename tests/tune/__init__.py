"""Tests of ucd_ray.tune."""
