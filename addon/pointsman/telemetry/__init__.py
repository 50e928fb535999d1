"""The finished record of each request, and where it goes. Fed by records, not by flows."""
