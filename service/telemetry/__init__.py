"""Telemetry of the processes: logs and metrics."""
