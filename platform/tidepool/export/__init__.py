"""A trained model made small, checked against the original, and packed for serving."""
