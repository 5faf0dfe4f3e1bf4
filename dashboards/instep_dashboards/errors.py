"""What can go wrong with dashboards.

DashboardsError          exit status 3: Grafana or a file could not be looked at
├── Misused              exit status 2: an argument that cannot be
└── Refused              Grafana answered, and said no
"""

from __future__ import annotations


class DashboardsError(Exception):
    """One sentence: what failed, where, and how to mend it. A retry helps only when Grafana was away."""

    exit_code = 3


class Misused(DashboardsError):
    """An argument that cannot be; a retry does not help."""

    exit_code = 2


class Refused(DashboardsError):
    """Grafana answered and refused; a retry helps after the named thing was changed."""
