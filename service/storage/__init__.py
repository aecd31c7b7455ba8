"""Stores originals and renditions: interfaces, and the backends behind them."""
