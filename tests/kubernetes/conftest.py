"""What the tests of the cluster share with those of the configuration: rules as YAML."""

from tests.config.conftest import folder, problems, rules

__all__ = ["folder", "problems", "rules"]
