"""The collector: takes frames in, keeps them, and runs the detectors over them."""
