"""Studies: search spaces, the Optuna and Ray Tune bridge, the driver, result tables."""
