"""The store: jobs, nodes, events, incidents with their evidence, plans, actions, orders, audit and the webhook outbox.

SQLite by default, PostgreSQL by URL, through SQLAlchemy. `engine` opens it, `models` names the tables, and one small
module per noun holds its queries.
"""
