"""How a command ends; 2, used wrongly, is argparse's."""

FINE, FOUND, COULD_NOT_LOOK = 0, 1, 3
