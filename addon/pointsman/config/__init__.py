"""YAML manifests in, a validated immutable `RoutingTable` out. Pure but for reading files."""
