"""`instep run`: one supervisor process per node; together they are the control plane of their run."""
