"""Tests of benchmarks that write pages."""
