"""What an access log says when it is summed up: `pointsman report`."""
