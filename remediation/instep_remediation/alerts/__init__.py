"""Messages to people: one for each incident, through an outbox that survives the server."""
