"""The built stand-in, for its own tests."""

from nvml_library import nvml_library

__all__ = ["nvml_library"]
