"""Search spaces, one YAML file per scenario; installed as `ucd_ray.search_spaces`."""
