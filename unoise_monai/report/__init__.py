"""The pages of a finished run, and the state of an installation."""
