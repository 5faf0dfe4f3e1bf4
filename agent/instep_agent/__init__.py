"""The node agent: reads one node's facts and sends them on, without interpreting them."""
