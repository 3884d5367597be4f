"""Training and adaptation: records, examples with their loss masks, trainable module trees."""
