"""The ``unoise`` command."""
