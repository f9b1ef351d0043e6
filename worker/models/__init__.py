"""Models: reading, merging, converting, quantizing, judging and loading them. Knows no Redis."""
