"""Who keeps whom waiting, from evidence on file: flight-recorder dumps, counters, RAS counts. Pure.

Sources are read into one form (`history`), laid over one another by process group (`assembly`, `counters`), compared
(`signatures`), followed (`graph`) and judged (`judge`).
"""
