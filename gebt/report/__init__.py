"""Tools to draw with: pages, figures, comparisons. They know no experiment."""
