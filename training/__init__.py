"""Makes the small checkpoint in `models/pixtral-mini`: pictures, model, training, export."""
