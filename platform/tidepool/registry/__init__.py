"""Registered models, their versions and aliases; MLflow's store underneath, artifact bytes by their digest."""
