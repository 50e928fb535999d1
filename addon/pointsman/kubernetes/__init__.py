"""Kubernetes: what is put beside an application, and what is read from a cluster."""
