"""What-if analysis of training steps: arrays in, slowdowns and costs out.

- `instep_diagnosis.whatif.analysis` analyses a recorded trace;
- `instep_diagnosis.whatif.steps` gives the cost of slow ranks where only sums by rank and step are known;
- `instep_diagnosis.whatif.synthetic` makes traces whose answer is known.

Nothing is imported here, so that importing the package costs nothing.
"""
