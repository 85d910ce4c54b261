"""Built-in recipes, one file each. Copy the nearest one to begin your own."""
