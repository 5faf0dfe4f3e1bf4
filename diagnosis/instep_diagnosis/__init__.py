"""Pure diagnosis: facts in, findings with reasons out."""
