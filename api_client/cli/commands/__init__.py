"""The commands that need only the contract and Redis. Those that need the worker register from ``worker.local.cli``."""
