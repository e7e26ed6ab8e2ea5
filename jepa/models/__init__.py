"""Networks built from `jepa.nn`: vision transformer, text towers, predictors."""
