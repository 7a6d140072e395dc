"""The page on which a user tries the service in a browser."""
