"""A run's own: what lies where in its folder, and what its files hold."""
