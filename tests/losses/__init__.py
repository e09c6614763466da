"""Tests of ucd_ray.losses."""
