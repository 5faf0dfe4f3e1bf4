"""What one rank can see of itself: collectives, phases and steps, written into its rank record without a change to the
script."""
