"""How the small checkpoint in `models/pixtral-mini` is made: pictures, model, training, export."""
