"""Tests of ucd_ray.models."""
