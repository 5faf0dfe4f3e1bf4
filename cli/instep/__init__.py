"""The one command of Instep; it finds its verbs through entry points."""
