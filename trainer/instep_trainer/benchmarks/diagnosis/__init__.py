"""`instep bench diagnosis`: the detectors on simulated jobs and on small real ones, beside plain baselines."""
