"""The server: composes ingest, detectors, remediation, API and page into one process."""
