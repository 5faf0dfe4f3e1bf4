"""The one place in diagnosis that touches files."""
