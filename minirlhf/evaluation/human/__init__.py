"""People compare the answers of models: the page that asks, and the analysis of the ratings."""
