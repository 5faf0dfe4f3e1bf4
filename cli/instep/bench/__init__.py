"""`instep bench`: every number Instep claims is printed by a command here, with its spread, and with the peer beside
it."""
