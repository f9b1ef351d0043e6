"""Where ``python -m worker.kernels.precompile`` has always been; the kernels are in ``worker.models.kernels``."""
