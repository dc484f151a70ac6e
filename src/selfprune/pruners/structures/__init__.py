"""Methods that decide which heads and channels go; none knows another."""
