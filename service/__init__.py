"""The REST service: studies started, watched and read over HTTP.  Installed as `ucd_ray.service`."""
