"""The stages, the run directory and resuming: the only place where everything meets."""
