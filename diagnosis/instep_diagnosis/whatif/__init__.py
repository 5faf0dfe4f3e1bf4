"""What-if analysis of recorded training traces: arrays in, slowdowns out."""
