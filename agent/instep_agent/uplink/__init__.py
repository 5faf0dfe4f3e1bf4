"""The way to the server: frames, the spool that holds them, and the connection they leave by."""
