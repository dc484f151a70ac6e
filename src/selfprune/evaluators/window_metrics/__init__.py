"""What a search may minimise on windows of tokens, one method per file."""
