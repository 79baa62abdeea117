"""What compares and times: other servers, other readers, the five systems, and our own parts."""
