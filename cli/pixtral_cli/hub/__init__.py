"""Models of Hugging Face's hub: `pixtral-serve pull`, and a repository's id for a directory."""
