"""What Kubernetes sees of Pointsman: its definitions, its rules' objects, what they refer to."""
