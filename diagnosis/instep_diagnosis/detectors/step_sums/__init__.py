"""Who makes the steps of a job slow, from sums per rank and step: no trace is needed.

`sums` holds what ranks report, `effects` takes apart what differs between them, `hypotheses` makes a repair of each
cause, `replay` says how long a step then takes, and `judge` names the cause whose repair gains most.
"""
