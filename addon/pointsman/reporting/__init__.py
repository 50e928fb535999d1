"""What `pointsman report` makes of access logs, and `pointsman replay` of saved traffic."""
