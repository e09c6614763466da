"""Does tuning pay?  The experiment behind docs/results."""
