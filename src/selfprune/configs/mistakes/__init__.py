"""What a user typed wrong, in plain words."""
