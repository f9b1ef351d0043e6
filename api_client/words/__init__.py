"""What people read, in either language: phrases, states, spans of time, sizes, printable text. Both faces use it."""
