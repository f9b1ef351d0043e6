"""The ledger: what is stored in Redis, under which keys, by which scripts, and how it is read back."""
