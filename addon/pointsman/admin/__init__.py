"""The admin endpoint: health, the live rules, drain, metrics and the page."""
