"""Asks any server that speaks the chat completions protocol: its requests, replies and budget."""
