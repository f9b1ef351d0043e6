"""Models of every architecture that the conversion package knows, built on the spot, and what becomes of them."""
