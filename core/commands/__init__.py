"""What a person types beside `serve`: one file a command, and what they share."""
