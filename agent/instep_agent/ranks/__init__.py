"""This node's ranks: where they sit, what is asked of them on order, and what dead ones leave behind."""
