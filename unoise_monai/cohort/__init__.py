"""Many patients' volumes: one command, every result, and a line about each that failed."""
