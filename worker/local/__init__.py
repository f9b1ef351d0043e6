"""What runs on one machine for one person: the embedded stack, the demo, the doctor and the commands."""
