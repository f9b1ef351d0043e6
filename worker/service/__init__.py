"""The service: takes messages, supervises stages, rescues, announces and measures. Knows no tensors."""
