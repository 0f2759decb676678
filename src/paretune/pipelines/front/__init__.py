"""`paretune front`: a grid of methods, weightings and seeds as cells that are run once, and what they come to."""
