"""Which tasks the policy trains on next."""
