"""Renditions: their parameters, jobs, costs, storage and integrity."""
